package exporter

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// The values of includeAssociatedData (Bulk Data guide). Both name Provenance of what is exported, and no other; where both are
// given the one counts that gives more.
const (
	latestProvenance   = "LatestProvenanceResources"
	relevantProvenance = "RelevantProvenanceResources"
)

// associates tells whether a type is Provenance that is chosen by includeAssociatedData: it is added to what the output holds,
// whatever _type, _since, _until and _typeFilter say.
func (r *run) associates(typ string) bool {
	return typ == provenance && len(r.job.Kickoff.Associated) > 0
}

// latestOnly tells whether of each exported resource the latest Provenance alone is wanted.
func (r *run) latestOnly(typ string) bool {
	return r.associates(typ) && !slices.Contains(r.job.Kickoff.Associated, relevantProvenance)
}

// withAssociated adds Provenance to some types, where it is asked for.
func (r *run) withAssociated(types []string) []string {
	if !r.associates(provenance) || slices.Contains(types, provenance) {
		return types
	}
	return append(slices.Clone(types), provenance)
}

// filterByOutput is the filter for Provenance by what the output holds.
func (r *run) filterByOutput(typ string) *filter {
	f := r.filter(typ)
	f.since, f.before, f.exported = time.Time{}, time.Time{}, true
	f.hasTarget = func(typ, id string, _ bool) (bool, error) { return r.targets.has(typ + "/" + id) }
	return f
}

// timeFormat is as long for every time, so that times sort as texts.
const timeFormat = "2006-01-02T15:04:05.000000000Z"

// noteTargets notes which resources of the output a Provenance is about: one line each of the target, when it was recorded and
// written, its id and its number in the slice's index, so that of the sorted lines of a target the last one is of the latest.
func (w *walk) noteTargets(row *fhir.Entry) error {
	if !w.latestOnly(row.Type) {
		return nil
	}
	recorded, err := recordedAt(row)
	if err != nil {
		return err
	}
	var failed error
	err = row.References(w.filter.compartment, func(_, reference string) bool {
		typ, id, ok := fhir.LocalTarget(reference, w.filter.bases)
		if !ok {
			return true
		}
		var found bool
		if found, failed = w.filter.hasTarget(typ, id, false); found {
			failed = local(w.spool.about.write(strings.Join([]string{
				typ + "/" + id, recorded.UTC().Format(timeFormat), row.LastUpdated.UTC().Format(timeFormat), row.ID,
				strconv.FormatInt(w.slice.Written-1, 10),
			}, "\t"), "\n"))
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}

// recordedAt is when a Provenance was recorded; where it does not say, when it was written.
func recordedAt(row *fhir.Entry) (time.Time, error) {
	whole, err := row.Bytes(anySize)
	if err != nil {
		return time.Time{}, err
	}
	var about struct{ Recorded string }
	if json.Unmarshal(whole, &about) == nil {
		if recorded, err := time.Parse(time.RFC3339, about.Recorded); err == nil {
			return recorded, nil
		}
	}
	return row.LastUpdated, nil
}

// keepLatest takes out what is not the latest Provenance of any resource, when all of it stands in the slices. Done again it
// finds nothing more.
func (r *run) keepLatest(ctx context.Context) (err error) {
	if !r.latestOnly(provenance) {
		return nil
	}
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s state.Slice) bool { return s.Type != provenance || s.Strategy == state.Deletions })
	latest, err := r.latestRows(all)
	if err != nil {
		return err
	}
	var changed []*state.Slice
	for i := range all {
		slice := &all[i]
		var older []int64
		for row := range slice.Written {
			if !latest[slice.Seq][row] && !anyDropped(slice.Dropped, row, row+1) {
				older = append(older, row)
			}
		}
		if len(older) > 0 {
			slice.Superseded += int64(len(older))
			slice.Dropped = append(slice.Dropped, older...)
			slices.Sort(slice.Dropped)
			changed = append(changed, slice)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return r.Store.Checkpoint(ctx, r.job.ID, changed...)
}

// latestRows tells by slice and number which rows are the latest Provenance of a resource.
func (r *run) latestRows(all []state.Slice) (latest map[int][]bool, err error) {
	sorter := newSorter(r.dir, "latest")
	defer func() { err = errors.Join(err, sorter.close()) }()
	latest = map[int][]bool{}
	for _, slice := range all {
		latest[slice.Seq] = make([]bool, slice.Written)
		err := eachAbout(r.dir, slice, func(line string) error {
			fields := strings.Split(line, "\t")
			row, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil || anyDropped(slice.Dropped, row, row+1) {
				return local(err)
			}
			return sorter.add(line + "\t" + strconv.Itoa(slice.Seq))
		})
		if err != nil {
			return nil, err
		}
	}
	lines, err := sorter.sorted()
	if err != nil {
		return nil, err
	}
	last := ""
	keep := func() error {
		fields := strings.Split(last, "\t")
		seq, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			return local(err)
		}
		row, err := strconv.ParseInt(fields[len(fields)-2], 10, 64)
		if err != nil || row >= int64(len(latest[seq])) {
			return local(fmt.Errorf("read targets: %w", errors.Join(err, io.ErrUnexpectedEOF)))
		}
		latest[seq][row] = true
		return nil
	}
	for {
		line, more, err := lines.next()
		if err != nil {
			return nil, err
		}
		target, _, _ := strings.Cut(line, "\t")
		if last != "" && (!more || !strings.HasPrefix(last, target+"\t")) {
			if err := keep(); err != nil {
				return nil, err
			}
		}
		if !more {
			return latest, nil
		}
		last = line
	}
}

// eachAbout reads the durable lines of what a slice's Provenance is about.
func eachAbout(dir string, slice state.Slice, fn func(line string) error) (err error) {
	if slice.AboutSize == 0 {
		return nil
	}
	file, err := os.Open(aboutPath(dir, slice.Seq))
	if err != nil {
		return local(err)
	}
	defer func() { err = errors.Join(err, local(file.Close())) }()
	lines := bufio.NewScanner(io.LimitReader(file, slice.AboutSize))
	for lines.Scan() {
		if err := fn(lines.Text()); err != nil {
			return err
		}
	}
	return local(lines.Err())
}
