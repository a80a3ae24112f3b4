package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// organizer makes blocks of the rows in the spool: for each instance of a type the instance itself and what refers to it
// (Bulk Data guide, parameter organizeOutputBy). It sorts the places of the rows on the disk, never the rows. It begins anew
// after a crash: from the same spool come the same rows in the same order.
type organizer struct {
	*run
	by          string
	compartment *fhir.Compartment // decides where by is Patient
	bases       []string
	places      *sorter
	spools      map[int]*os.File // by slice
	types       map[int]string   // by slice
	// left are the numbers of rows that are in no block, by type.
	left map[string]int
}

// organize puts all rows of the spool as files of blocks.
func (r *run) organize(ctx context.Context, all []state.Slice) (err error) {
	o := &organizer{
		run: r, by: r.job.Kickoff.OrganizeBy, bases: append(r.Client.Bases(), r.job.Kickoff.Base),
		places: newSorter(r.dir, "organized.places"), spools: map[int]*os.File{}, types: map[int]string{}, left: map[string]int{},
	}
	defer func() { err = errors.Join(err, o.close()) }()
	if o.by == "Patient" {
		if o.compartment, err = fhir.PatientCompartment(r.profile.FHIRVersion); err != nil {
			return err
		}
		o.compartment = o.compartment.WithTask() // a Task that the export holds belongs to its patient
	}
	for i := range all {
		if all[i].SpoolRows == 0 || all[i].Strategy == state.Deletions {
			continue
		}
		if err := o.scan(ctx, &all[i]); err != nil {
			return fmt.Errorf("organise slice %d of %s: %w", all[i].Seq, all[i].Type, err)
		}
	}
	if err := o.remarkLeft(ctx); err != nil {
		return err
	}
	return o.write(ctx)
}

// scan finds the blocks of a slice's rows. Its spool file has all rows of its index, as no part of it has left.
func (o *organizer) scan(ctx context.Context, slice *state.Slice) error {
	file, err := os.Open(spoolPath(o.dir, slice))
	if err != nil {
		return local(err)
	}
	o.spools[slice.Seq], o.types[slice.Seq] = file, slice.Type
	lines := bufio.NewReaderSize(file, 64<<10)
	at, row := int64(0), int64(0)
	err = eachWritten(o.dir, slice.Seq, slice.IndexSize, func(id, _ string) error {
		size, err := copyLine(nil, lines, true)
		if err != nil {
			return local(err)
		}
		_, dropped := slices.BinarySearch(slice.Dropped, row)
		begin := at
		at, row = at+size, row+1
		if dropped {
			return ctx.Err()
		}
		resource, err := fhir.EntryAt(slice.Type, id, file, begin, size-1)
		if err != nil {
			return local(err)
		}
		return errors.Join(o.add(resource, spot{seq: slice.Seq, at: begin, size: size - 1}), ctx.Err())
	})
	if err == nil && (row != slice.SpoolRows || at != slice.SpoolSize) {
		err = local(errors.New("the rows are not those of the index"))
	}
	return err
}

// add notes in which blocks a row stands.
func (o *organizer) add(row *fhir.Entry, at spot) error {
	placed := false
	var failed error
	put := func(id string, own bool) {
		if !o.wanted(id) || failed != nil {
			return
		}
		at.id, at.own, placed = id, own, true
		failed = o.places.add(at.encode())
	}
	refers := func(reference string) bool {
		if id, ok := fhir.LocalReference(o.by, reference, o.bases); ok && (row.Type != o.by || id != row.ID) {
			put(id, false)
		}
		return failed == nil
	}
	var err error
	switch group := o.job.Kickoff.Group; {
	case o.by == "Group" && group != "": // all of the export is of this Group's members
		put(group, row.Type == "Group" && row.ID == group)
	case o.by == "Patient" && row.Type == "Patient": // not in another's block, whom Patient.link names
		put(row.ID, true)
	case o.by == "Patient":
		err = row.References(o.compartment, func(_, reference string) bool { return refers(reference) })
	default:
		if row.Type == o.by {
			put(row.ID, true)
		}
		err = row.AllReferences(refers)
	}
	if !placed {
		o.left[row.Type]++
	}
	return errors.Join(err, failed)
}

// wanted tells whether there can be a block of an id: of nobody who is outside of the Group that is exported, and of
// nothing that no server has as an id.
func (o *organizer) wanted(id string) bool {
	if id == "" || len(id) > maxID || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' }) {
		return false
	}
	return o.by != "Patient" || o.cohort == nil || o.cohort.hasPatient(id)
}

// maxID is longer than any id: FHIR has 64 characters, some servers a few more.
const maxID = 1 << 10

// remarkLeft says what is in no block, which the guide leaves to the server.
func (o *organizer) remarkLeft(ctx context.Context) error {
	var issues []state.Issue
	for _, typ := range slices.Sorted(maps.Keys(o.left)) {
		issues = append(issues, state.Issue{
			Severity: "warning", Code: "incomplete",
			Text: fmt.Sprintf("resources of type %s that refer to no %s are left out of the organised output: %d", typ, o.by, o.left[typ]),
		})
	}
	return o.remark(ctx, issues...)
}

func (o *organizer) close() error {
	err := o.places.close()
	for _, file := range o.spools {
		err = errors.Join(err, local(file.Close()))
	}
	return err
}

// spot is where a row stands in the spool, and of which instance's block it is.
type spot struct {
	id string
	// own tells that the row is the instance.
	own  bool
	seq  int
	at   int64
	size int64
}

// encode writes a spot so that spots sort by their instances, the instance before what refers to it.
func (p spot) encode() string {
	order := '1'
	if p.own {
		order = '0'
	}
	return fmt.Sprintf("%s\t%c\t%08x\t%012x\t%08x", p.id, order, p.seq, p.at, p.size)
}

func decodeSpot(line string) (p spot, err error) {
	fields := strings.Split(line, "\t")
	if len(fields) != 5 {
		return spot{}, local(errors.New("a line of the sorted rows is not whole"))
	}
	p.id, p.own = fields[0], fields[1] == "0"
	var numbers [3]int64
	for i := range numbers {
		if numbers[i], err = strconv.ParseInt(fields[2+i], 16, 64); err != nil {
			return spot{}, local(err)
		}
	}
	p.seq, p.at, p.size = int(numbers[0]), numbers[1], numbers[2]
	return p, nil
}

// organizedPath is where an organised file grows. Once it is announced, it is the file's content until the bucket has it.
func (r *run) organizedPath() string { return filepath.Join(r.dir, "organized.ndjson") }

// putOrganized puts an announced file.
func (r *run) putOrganized(ctx context.Context, file state.File) error {
	return r.putContent(ctx, file, []content{{path: r.organizedPath(), size: file.Bytes}}, nil)
}
