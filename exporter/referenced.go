package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// referencedTypes are nobody's compartment, and what a patient's resources refer to in them goes along: who treated, where,
// and with what (Bulk Data guide, section "Patient-level export": further resources that are helpful may be added).
var referencedTypes = []string{"Device", "Location", "Medication", "Organization", "Practitioner", "PractitionerRole", "Substance"}

const (
	// referenceDepth is how far references are followed: a Practitioner's Organization goes along, its parent does not.
	referenceDepth = 2
	// maxReferenced is how many resources are asked for in one list.
	maxReferenced = 100
)

// Referenced returns the types of which an export of a level may hold what its resources refer to.
func Referenced(level state.Level, statement *fhir.CapabilityStatement) []string {
	if level == state.System {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(referencedTypes), func(typ string) bool { return !statement.Offers(typ) })
}

// splitTypes tells the types that the job searches from those of which it holds what is referred to. Device is both: by its
// patient, and by reference.
func (r *run) splitTypes(ctx context.Context) (searched, referenced []string, err error) {
	searched, err = r.types(ctx)
	if err != nil || r.job.Kickoff.Level == state.System || len(searched) == 0 {
		return searched, nil, err
	}
	statement, err := r.capabilities(ctx)
	if err != nil {
		return nil, nil, err
	}
	allowed, err := Types(r.job.Kickoff.Level, statement, true)
	if err != nil {
		return nil, nil, err
	}
	if !r.WithoutReferenced {
		referenced = Referenced(r.job.Kickoff.Level, statement)
	}
	if named := r.job.Kickoff.Types; len(named) > 0 {
		referenced = slices.DeleteFunc(referenced, func(typ string) bool { return !slices.Contains(named, typ) })
	}
	searched = slices.DeleteFunc(slices.Clone(searched), func(typ string) bool { return !slices.Contains(allowed, typ) })
	return searched, referenced, nil
}

// collect notes what a row of the output refers to.
func (w *walk) collect(row *fhir.Entry) error {
	if len(w.job.Referenced) == 0 || w.spool == nil || w.draft {
		return nil
	}
	if w.refs == nil {
		if err := w.loadRefs(); err != nil {
			return err
		}
	}
	var failed error
	err := row.AllReferences(func(reference string) bool {
		typ, id, ok := fhir.LocalTarget(reference, w.filter.bases)
		if !ok || !slices.Contains(w.job.Referenced, typ) {
			return true
		}
		name := typ + "/" + id
		if _, known := w.refs[name]; known {
			return true
		}
		w.refs[name] = struct{}{}
		failed = local(w.spool.refs.write(name, "\n"))
		return failed == nil
	})
	if err != nil {
		return fmt.Errorf("read references: %w", fhir.ErrMalformed)
	}
	return failed
}

// loadRefs fills the set of what the slice's rows refer to from its file.
func (w *walk) loadRefs() error {
	w.refs = map[string]struct{}{}
	if w.slice.RefsSize == 0 {
		return nil
	}
	return eachReferenced(w.dir, w.slice.Seq, w.slice.RefsSize, func(name string) { w.refs[name] = struct{}{} })
}

// eachReferenced reads the first size bytes of what a slice's rows refer to.
func eachReferenced(dir string, seq int, size int64, fn func(name string)) (err error) {
	if size == 0 {
		return nil
	}
	file, err := os.Open(refsPath(dir, seq))
	if err != nil {
		return local(err)
	}
	defer func() { err = errors.Join(err, local(file.Close())) }()
	lines := bufio.NewScanner(io.LimitReader(file, size))
	for lines.Scan() {
		fn(lines.Text())
	}
	return local(lines.Err())
}

// addReferenced reads what the output refers to, as of T, once per job. It stands in slices of strategy Referenced, which
// are stored together when all is read.
func (r *run) addReferenced(ctx context.Context) error {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil || len(r.job.Referenced) == 0 {
		return err
	}
	wanted, next := map[string]map[string]struct{}{}, 1
	for _, typ := range r.job.Referenced {
		wanted[typ] = map[string]struct{}{}
	}
	want := func(name string) {
		typ, id, _ := strings.Cut(name, "/")
		if ids := wanted[typ]; ids != nil {
			ids[id] = struct{}{}
		}
	}
	for _, slice := range all {
		if next = max(next, slice.Seq+1); slice.Strategy == state.Referenced {
			return nil
		}
		if slice.RefsSize > 0 {
			if err := eachReferenced(r.dir, slice.Seq, slice.RefsSize, want); err != nil {
				return err
			}
		}
	}
	reads := make([]*referencedRead, 0, len(r.job.Referenced))
	defer func() {
		for _, read := range reads {
			err = errors.Join(err, read.spool.close())
		}
	}()
	for i, typ := range r.job.Referenced {
		read, err := r.newReferencedRead(typ, next+i, all)
		if err != nil {
			return err
		}
		reads = append(reads, read)
	}
	for range referenceDepth {
		for _, read := range reads {
			if err := read.fetch(ctx, wanted[read.slice.Type], want); err != nil {
				return fmt.Errorf("read referenced %s: %w", read.slice.Type, err)
			}
		}
	}
	slices := make([]*state.Slice, len(reads))
	for i, read := range reads {
		if err := read.spool.sync(); err != nil {
			return err
		}
		read.spool.measure(read.slice)
		read.slice.Done, read.slice.Expected, read.slice.Verdict = true, read.slice.Met, state.Proved
		slices[i] = read.slice
	}
	return r.Store.Checkpoint(ctx, r.job.ID, slices...)
}

// referencedRead reads the referenced resources of one type.
type referencedRead struct {
	*walk
	asked map[string]struct{}
	want  func(name string)
}

func (r *run) newReferencedRead(typ string, seq int, all []state.Slice) (*referencedRead, error) {
	slice := &state.Slice{Seq: seq, Type: typ, Strategy: state.Referenced, Counted: -1}
	files, err := openSpool(r.dir, slice)
	if err != nil {
		return nil, err
	}
	f := r.filter(typ)
	f.all = true
	read := &referencedRead{walk: &walk{run: r, slice: slice, filter: f, spool: files}, asked: map[string]struct{}{}}
	for _, other := range all { // a Device with a patient is there already
		if other.Type != typ || other.Strategy == state.Deletions {
			continue
		}
		row := int64(0)
		err := eachWritten(r.dir, other.Seq, other.IndexSize, func(id, _ string) error {
			if !anyDropped(other.Dropped, row, row+1) {
				read.asked[id] = struct{}{}
			}
			row++
			return nil
		})
		if err != nil {
			return nil, errors.Join(err, files.close())
		}
	}
	return read, nil
}

// fetch reads those ids that were not read yet.
func (f *referencedRead) fetch(ctx context.Context, ids map[string]struct{}, want func(name string)) error {
	f.want = want
	var open []string
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if _, asked := f.asked[id]; !asked {
			f.asked[id] = struct{}{}
			open = append(open, id)
		}
	}
	size := 1
	if f.profile.IDLists {
		size = maxReferenced
	}
	for len(open) > 0 {
		n, length := 0, 0
		for n < min(size, len(open)) && (n == 0 || length+len(open[n]) < maxListBytes) {
			length += len(open[n]) + 1
			n++
		}
		if err := f.list(ctx, open[:n]); err != nil {
			return err
		}
		open = open[n:]
	}
	return nil
}

// list reads some resources by one search, and what it does not give or what was changed after T by their histories.
func (f *referencedRead) list(ctx context.Context, ids []string) error {
	left := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		left[id] = struct{}{}
	}
	err := f.pace.do(ctx, func() error {
		before := *f.slice
		q := fhir.Query{Type: f.slice.Type, Count: len(ids)}.With(fhir.QueryParam{Name: "_id", Value: strings.Join(ids, ",")})
		page, err := f.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		page.Collect(nil, true)
		found := map[string]struct{}{}
		err = page.Each(func(row *fhir.Entry) error {
			if _, wanted := left[row.ID]; !wanted || row.Type != f.slice.Type || row.Size() == 0 || row.LastUpdated.After(f.job.TransactionTime) {
				return nil
			}
			if _, twice := found[row.ID]; twice {
				return nil
			}
			found[row.ID] = struct{}{}
			return f.take(row)
		})
		if err != nil {
			return errors.Join(err, f.takeBack(before))
		}
		f.keepPage()
		for id := range found {
			delete(left, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(left)) {
		if err := f.single(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// single takes a resource as of T: it was changed or deleted since, it is not there, or it stood on a later page.
func (f *referencedRead) single(ctx context.Context, id string) error {
	row, err := f.readAsOf(ctx, f.slice.Type, id)
	if err != nil || row == nil {
		return err
	}
	if err := f.take(row); err != nil {
		return err
	}
	f.keepPage()
	return nil
}

func (f *referencedRead) take(row *fhir.Entry) error {
	f.slice.Met++
	if err := f.emit(row); err != nil {
		return err
	}
	return row.AllReferences(func(reference string) bool {
		if typ, id, ok := fhir.LocalTarget(reference, f.filter.bases); ok {
			f.want(typ + "/" + id)
		}
		return true
	})
}

// readAsOf reads one resource as of T; nil when it was not there, or where that cannot be known any more.
func (r *run) readAsOf(ctx context.Context, typ, id string) (*fhir.Entry, error) {
	var row *fhir.Entry
	err := r.pace.do(ctx, func() error {
		var err error
		row, err = r.Client.ReadEntry(ctx, typ, id)
		return err
	})
	switch {
	case err != nil && !gone(err):
		return nil, err
	case err == nil && !row.LastUpdated.After(r.job.TransactionTime):
		return row, nil
	case !r.profile.InstanceHistory:
		return nil, nil
	}
	var then change
	if err := r.asOf(ctx, typ, id, r.job.TransactionTime, &then); err != nil {
		return nil, err
	}
	if !then.known || then.deleted {
		return nil, nil
	}
	return &fhir.Entry{Type: typ, ID: id, Version: then.version, LastUpdated: then.updated, Resource: then.body}, nil
}
