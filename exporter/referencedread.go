package exporter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// maxReferenced is how many resources are asked for in one list.
const maxReferenced = 100

// referencedRead reads the referenced resources of one type.
type referencedRead struct {
	*walk
	asked map[string]struct{}
	want  func(name string)
	// size is how many ids the server takes in one list, 0 where it takes no search by _id: then each is read by itself.
	size int
	// ended tells that the server gives nothing more of the type, which is said already.
	ended bool
	// current is how many resources are included as they are now, left how many are missing for the same reason: they were changed
	// after T, and there is no history.
	current, left int
}

func (r *run) newReferencedRead(typ string, seq int, all []state.Slice) (*referencedRead, error) {
	slice := &state.Slice{Seq: seq, Type: typ, Strategy: state.Referenced, Counted: -1}
	files, err := openSpool(r.dir, slice)
	if err != nil {
		return nil, err
	}
	f := r.filter(typ)
	f.all = true
	read := &referencedRead{walk: &walk{run: r, slice: slice, filter: f, spool: files}, asked: map[string]struct{}{}, size: 1}
	if r.profile.IDLists {
		read.size = maxReferenced
	}
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
	for len(open) > 0 && !f.ended {
		n, length := 0, 0
		for n < min(max(1, f.size), len(open)) && (n == 0 || length+len(open[n]) < maxListBytes) {
			length += len(open[n]) + 1
			n++
		}
		if err := f.read(ctx, open[:n]); err != nil {
			return err
		}
		open = open[n:]
	}
	return nil
}

// read reads some resources: by one search, where the server fails on that by ever shorter ones, and in the end each by
// itself. What it does not give in any way is a hole.
func (f *referencedRead) read(ctx context.Context, ids []string) error {
	if f.ended {
		return nil
	}
	if most := max(1, f.size); len(ids) > most {
		for part := range slices.Chunk(ids, most) {
			if err := f.read(ctx, part); err != nil {
				return err
			}
		}
		return nil
	}
	missing := ids
	if f.size > 0 {
		var err error
		if missing, err = f.list(ctx, ids); err != nil {
			return f.narrower(ctx, ids, err)
		}
	}
	for _, id := range missing {
		if err := f.single(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// narrower reads a list on which the server fails by its halves. A single id is read as what it is.
func (f *referencedRead) narrower(ctx context.Context, ids []string, cause error) error {
	var response *fhir.ResponseError
	answered := errors.As(cause, &response)
	switch {
	case answered && response.NotOffered() && f.slice.Met == 0:
		f.ended = true
		return f.remark(ctx, state.Issue{
			Severity: "information", Code: "not-supported", Text: "the server does not offer a search of " + f.slice.Type,
		})
	case answered && tooLong(response.StatusCode):
		f.size = len(ids) / 2
		return f.read(ctx, ids)
	case poisoned(cause):
		if err := f.isolate(ctx, cause); err != nil || f.ended {
			return err
		}
	default:
		return f.miss(ctx, -1, cause)
	}
	if len(ids) == 1 {
		return f.single(ctx, ids[0])
	}
	middle := len(ids) / 2
	if err := f.read(ctx, ids[:middle]); err != nil {
		return err
	}
	return f.read(ctx, ids[middle:])
}

// tooLong tells whether a status says that a list, or the address that holds it, is too long.
func tooLong(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusRequestURITooLong
}

// isolate begins to close in on what is broken, if the server answers anything else.
func (f *referencedRead) isolate(ctx context.Context, cause error) error {
	if f.closing {
		return nil
	}
	f.closing = true
	alive := f.alive(ctx)
	if alive == nil {
		return nil
	}
	if _, ok := holeReason(alive); !ok {
		return alive
	}
	return f.miss(ctx, -1, cause)
}

// miss makes a hole of rows that the server does not give, -1 for all that is left of the type. An error that is not confined to the type
// is returned.
func (f *referencedRead) miss(ctx context.Context, rows int64, cause error) error {
	reason, ok := holeReason(cause)
	if !ok || ctx.Err() != nil {
		return cause
	}
	f.ended = rows < 0
	f.Log.ErrorContext(ctx, "referenced resources cannot be read", "job", f.job.ID, "type", f.slice.Type, "count", rows, "error", cause)
	for i := range f.slice.Holes {
		if hole := &f.slice.Holes[i]; hole.Reason == reason {
			if hole.Rows += rows; rows < 0 || hole.Rows < rows { // either is unknown
				hole.Rows = -1
			}
			return nil
		}
	}
	f.slice.Holes = append(f.slice.Holes, state.Hole{Type: f.slice.Type, Rows: rows, Reason: reason})
	return nil
}

// list reads some resources by one search, and returns those that it did not give, or not as of T.
func (f *referencedRead) list(ctx context.Context, ids []string) (missing []string, err error) {
	open := make(map[string]struct{}, len(ids))
	q := fhir.Query{Type: f.slice.Type, Count: len(ids)}.With(fhir.QueryParam{Name: "_id", Value: strings.Join(ids, ",")})
	err = f.pace.doWith(ctx, nil, f.tries(), func() error {
		for _, id := range ids {
			open[id] = struct{}{}
		}
		before := *f.slice
		page, err := f.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		page.Collect(nil, true)
		err = page.Each(func(row *fhir.Entry) error {
			if row.Mode == "outcome" || row.Type == "OperationOutcome" {
				if code, severe := fhir.SevereCode(row.Resource); severe {
					return &partialError{code}
				}
				return nil
			}
			_, wanted := open[row.ID]
			if !wanted || row.Type != f.slice.Type || row.Size() == 0 || row.LastUpdated.After(f.job.TransactionTime) {
				return nil
			}
			delete(open, row.ID)
			return f.take(row)
		})
		if err != nil {
			return errors.Join(err, f.takeBack(before))
		}
		f.keepPage()
		return nil
	})
	return slices.Sorted(maps.Keys(open)), err
}

// single takes a resource as of T: it was changed or deleted since, it is not there, it stood on a later page, or the server fails on
// searches that hold it.
func (f *referencedRead) single(ctx context.Context, id string) error {
	if f.ended {
		return nil
	}
	row, later, err := f.readAsOf(ctx, f.slice.Type, id)
	switch {
	case err != nil:
		if f.barren++; f.barren >= maxReferenced { // it is not a few that are broken
			return f.miss(ctx, -1, err)
		}
		return f.miss(ctx, 1, err)
	case row == nil:
		return nil
	case later && f.WithoutHistory == Strict:
		return fmt.Errorf("resources changed while the export ran and the server has no history to take them from: %w", errIncomplete)
	case later && f.WithoutHistory != IncludeCurrent:
		f.left++
		return nil
	case later:
		f.current++
		until := f.filter.until
		f.filter.until = row.LastUpdated
		defer func() { f.filter.until = until }()
	}
	f.barren = 0
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

// finish makes what was read durable and says what it is worth. Nobody counts what is referred to, so that nothing is proved
// beyond each id having been answered.
func (f *referencedRead) finish(ctx context.Context) error {
	if err := f.spool.sync(); err != nil {
		return err
	}
	f.spool.measure(f.slice)
	f.slice.Done, f.slice.Expected, f.slice.Verdict = true, -1, state.Unverified
	switch {
	case len(f.slice.Holes) > 0:
		f.slice.Verdict = state.Incomplete
	case f.slice.Met == 0 && f.left == 0: // it adds nothing to the type, nor takes anything from its proof
		f.slice.Expected, f.slice.Verdict = 0, state.Proved
	}
	text := ""
	switch {
	case f.current > 0:
		text = fmt.Sprintf("%d referenced %s resources that were changed after the transaction time are included as they are now", f.current, f.slice.Type)
	case f.left > 0:
		text = fmt.Sprintf("%d referenced %s resources that were changed after the transaction time are missing", f.left, f.slice.Type)
	default:
		return nil
	}
	return f.remark(ctx, state.Issue{Severity: "warning", Code: "incomplete", Text: text + ": the server gives no history"})
}
