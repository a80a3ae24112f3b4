package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// A server that wants a Patient in each search gives by it only the Provenance of the Patient himself. That of his other
// resources is asked for by what the export holds, in one of two ways that stand as the only list of the slice.
const (
	targetsByList    = "target"
	targetsByInclude = "_revinclude"
	// revInclude is what US Core asks servers for.
	revInclude = "Provenance:target"
	// targetsPerList is how many resources are named in one list.
	targetsPerList = 50
)

// byTargets tells whether a slice is Provenance that is asked for by its targets.
func byTargets(slice *state.Slice) bool {
	return slice.Type == provenance && slices.Equal(slice.Lists, []string{targetsByList}) && slice.ListSize == 0 ||
		slices.Equal(slice.Lists, []string{targetsByInclude})
}

// targetSearch finds out by what way the server gives the Provenance of a resource that is not a Patient, empty for none. A server that
// does not know _revinclude may pass over it in silence, so that it has to be declared.
func (r *run) targetSearch(ctx context.Context) (way string, err error) {
	works, err := r.findsNothing(ctx, fhir.Query{Type: provenance, Count: 1}.With(
		fhir.QueryParam{Name: "target", Value: "Observation/" + fhir.UnknownID + ",Encounter/" + fhir.UnknownID}))
	if err != nil || works {
		return targetsByList, err
	}
	statement, err := r.capabilities(ctx)
	if err != nil || !statement.HasRevInclude("Patient", revInclude) {
		return "", err
	}
	works, err = r.findsNothing(ctx, includeQuery("Patient", []string{fhir.UnknownID}))
	if err != nil || !works {
		return "", err
	}
	return targetsByInclude, nil
}

// includeQuery asks for some resources with their Provenance.
func includeQuery(typ string, ids []string) fhir.Query {
	return fhir.Query{Type: typ, Count: len(ids), ServerPages: true}.With(
		fhir.QueryParam{Name: "_id", Value: strings.Join(ids, ",")}, fhir.QueryParam{Name: "_revinclude", Value: revInclude})
}

// remarkTargets says which Provenance is not found where it cannot be searched as a whole.
func (r *run) remarkTargets(ctx context.Context, slice *state.Slice) error {
	text := ""
	kickoff := &r.job.Kickoff
	switch narrow := len(kickoff.Types) > 0 || !kickoff.Since.IsZero() || !kickoff.Until.IsZero() || len(kickoff.Filters) > 0; {
	case !r.last(slice.Type) || len(slice.Lists) == 0, byTargets(slice) && r.associates(slice.Type):
		return nil
	case !byTargets(slice):
		text = "the server gives Provenance of Patients only: that of their other resources is missing"
	case narrow:
		text = "the server gives Provenance only by what it is about: that of resources which this export does not hold, by _since, _until or _typeFilter " +
			"or of types that _type does not name, is missing"
	default:
		return nil
	}
	return r.remark(ctx, state.Issue{Severity: "warning", Code: "incomplete", Text: text})
}

// targetRead asks for the Provenance of what the export holds.
type targetRead struct {
	*walk
	size int // how many resources the server takes in one list
	typ  string
	ids  []string
	n    int // of the list
	// refused tells that the type cannot be asked for, which is said already.
	refused bool
	// seen are the rows of the list that is being read.
	seen map[string]struct{}
}

// aboutTargets reads a slice of Provenance by its targets, of the Patients first. What the export holds of other types does not change
// any more, so that the lists are the same after a restart.
func (w *walk) aboutTargets(ctx context.Context) error {
	patients, err := w.run.members(ctx, false)
	if err != nil {
		return err
	}
	all, err := w.Store.Slices(ctx, w.job.ID)
	if err != nil {
		return err
	}
	t := &targetRead{walk: w, size: targetsPerList}
	add := func(typ, id string) error {
		if typ != t.typ || len(t.ids) == targetsPerList {
			if err := t.flush(ctx); err != nil {
				return err
			}
		}
		if typ != t.typ {
			t.typ, t.refused, t.size = typ, false, targetsPerList
		}
		t.ids = append(t.ids, id)
		return nil
	}
	for _, id := range patients.patients {
		if err := add("Patient", id); err != nil {
			return err
		}
	}
	err = w.eachExported(all, func(typ, id string) error {
		if typ == "Patient" {
			return nil
		}
		return add(typ, id)
	})
	if err != nil {
		return err
	}
	return t.flush(ctx)
}

// flush reads the list that has been gathered, unless that was done before a restart.
func (t *targetRead) flush(ctx context.Context) error {
	ids := t.ids
	t.ids = t.ids[:0]
	if len(ids) == 0 {
		return nil
	}
	if t.n++; t.n <= t.slice.Query {
		return nil
	}
	if err := t.read(ctx, ids); err != nil {
		return err
	}
	t.slice.Query = t.n
	return t.committed(ctx)
}

// read reads the Provenance of some resources: by one search, and where the server fails on that by ever shorter ones.
func (t *targetRead) read(ctx context.Context, ids []string) error {
	for part := range slices.Chunk(ids, t.size) {
		if t.refused {
			return nil
		}
		err := t.list(ctx, part)
		if err == nil {
			continue
		}
		status := fhir.StatusOf(err)
		switch {
		case len(part) > 1 && tooLong(status):
			t.size = len(part) / 2
			err = t.read(ctx, part)
		case len(part) > 1 && poisoned(err):
			if err = t.read(ctx, part[:len(part)/2]); err == nil {
				err = t.read(ctx, part[len(part)/2:])
			}
		case status == 400 || status == 404:
			t.refused = true
			err = t.remark(ctx, state.Issue{
				Severity: "warning", Code: "incomplete", Text: "the server cannot be asked for the Provenance of " + t.typ + " resources: it is missing",
			})
		default:
			reason, ok := holeReason(err)
			if !ok {
				return err
			}
			t.refused = status == 403
			err = t.addHole(ctx, state.Hole{Type: provenance, Rows: -1, Reason: reason})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list reads all pages of one search.
func (t *targetRead) list(ctx context.Context, ids []string) error {
	q := includeQuery(t.typ, ids)
	if t.slice.Lists[0] == targetsByList {
		q = fhir.Query{Type: provenance, Count: t.pageSize(), ServerPages: true}.With(
			fhir.QueryParam{Name: "target", Value: t.typ + "/" + strings.Join(ids, ","+t.typ+"/")})
	}
	counted, err := int64(0), error(nil)
	if q.Type == provenance { // what is included is not counted
		if counted, err = t.countRows(ctx, q); err != nil {
			return err
		}
	}
	return t.pace.doWith(ctx, nil, unclearTries, func() error {
		before := *t.slice
		t.seen = map[string]struct{}{}
		err := t.pages(ctx, q)
		if err == nil && counted > int64(len(t.seen)) {
			err = &partialError{"incomplete"}
		}
		if err != nil {
			return errors.Join(err, t.takeBack(before), t.loadWritten())
		}
		t.keepPage()
		return nil
	})
}

func (t *targetRead) pages(ctx context.Context, q fhir.Query) error {
	var links chain
	link := ""
	for {
		known := len(t.seen)
		page, err := t.fetch(ctx, nil, q, link)
		if link != "" && expired(err) { // the list is asked for again
			return fmt.Errorf("a next link has expired: %w", fhir.ErrMalformed)
		}
		if err != nil {
			return err
		}
		page.Collect(nil, len(t.job.Referenced) > 0)
		t.bare = t.bare[:0]
		if err := page.Each(t.take); err != nil {
			return err
		}
		if _, err := t.eachBare(ctx, t.met); err != nil {
			return err
		}
		if link, err = page.Next(); err != nil || link == "" {
			return err
		}
		if !links.goesOn(link, len(t.seen) > known) {
			return fmt.Errorf("the server's next links do not end: %w", errIncomplete)
		}
	}
}

// take takes a row of a page, on which the targets may stand as well.
func (t *targetRead) take(row *fhir.Entry) error {
	switch {
	case row.Mode == "outcome" || row.Type == "OperationOutcome":
		if code, severe := fhir.SevereCode(row.Resource); severe {
			return &partialError{code}
		}
		return nil
	case row.Type != provenance || row.ID == "":
		return nil
	case row.Size() == 0:
		t.bare = append(t.bare, row.ID)
		return nil
	}
	return t.met(row)
}

// met writes a row. One of several targets is met more than once, and counts once.
func (t *targetRead) met(row *fhir.Entry) error {
	t.seen[row.ID] = struct{}{}
	before := t.slice.Written
	if err := t.emit(row); err != nil {
		return err
	}
	t.slice.Met += t.slice.Written - before
	return nil
}
