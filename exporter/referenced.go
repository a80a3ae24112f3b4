package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// referencedTypes are nobody's compartment, and what a patient's resources refer to in them goes along: who treated, where,
// and with what (Bulk Data guide, section "Patient-level export": further resources that are helpful may be added).
var referencedTypes = []string{"Device", "Location", "Medication", "Organization", "Practitioner", "PractitionerRole", "Substance"}

// referenceDepth is how far references are followed: a Practitioner's Organization goes along, its parent does not.
const referenceDepth = 2

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
		referenced = r.withoutWithheld(Referenced(r.job.Kickoff.Level, statement))
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
func (r *run) addReferenced(ctx context.Context) (err error) {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil || len(r.job.Referenced) == 0 {
		return err
	}
	next, wanted := 1, wishes{}
	for _, slice := range all {
		if next = max(next, slice.Seq+1); slice.Strategy == state.Referenced {
			return nil
		}
		if err := eachReferenced(r.dir, slice.Seq, slice.RefsSize, wanted.add); err != nil {
			return err
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
		found := wishes{} // of this step, for the next one: whatever the order of the types, no step is two
		for _, read := range reads {
			if err := read.fetch(ctx, wanted[read.slice.Type], found.add); err != nil {
				return fmt.Errorf("read referenced %s: %w", read.slice.Type, err)
			}
		}
		wanted = found
	}
	slices := make([]*state.Slice, len(reads))
	for i, read := range reads {
		if err := read.finish(ctx); err != nil {
			return err
		}
		slices[i] = read.slice
	}
	return r.Store.Checkpoint(ctx, r.job.ID, slices...)
}

// wishes are the ids that are referred to, by type.
type wishes map[string]map[string]struct{}

// add takes up a name "Type/id".
func (w wishes) add(name string) {
	typ, id, _ := strings.Cut(name, "/")
	if w[typ] == nil {
		w[typ] = map[string]struct{}{}
	}
	w[typ][id] = struct{}{}
}
