package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// maxPasses is how often the server's pages are read until two counts agree with what they held.
	maxPasses = 5
)

// errExpired tells that the server forgot the search behind a next link. The rows are read again from the start.
var errExpired = errors.New("next link has expired")

// paging reads a whole slice by the server's next links.
func (w *walk) paging(ctx context.Context) error {
	for w.slice.Query < w.queries() {
		q, before := w.query(), w.slice.Met
		if w.profile.Keyset && !w.slice.Open {
			q.Sort = "_lastUpdated"
		}
		err := w.verified(ctx, q, w.wholePass(ctx, before))
		if poisoned(err) {
			err = w.pagesAround(ctx, q, before, err)
		}
		if err != nil {
			return err
		}
		w.slice.Query++
		if err := w.committed(ctx); err != nil {
			return err
		}
	}
	w.slice.Query-- // the last one, as after a keyset walk
	return nil
}

// wholePass is a pass over a query of the slice, in which every row counts as met, beside those of the queries before.
func (w *walk) wholePass(ctx context.Context, before int64) func(fhir.Query) (int64, error) {
	return func(q fhir.Query) (int64, error) {
		w.slice.Met = before // also when it is read again
		unique, err := w.pass(ctx, q, w.emitInWindow, w.loadWritten)
		w.slice.Met = before + unique
		return unique, err
	}
}

// pagesAround reads a query again with ever smaller pages, because one of them cannot be had. Behind a broken row nothing
// can be reached by links; what is missing then is a hole.
func (w *walk) pagesAround(ctx context.Context, q fhir.Query, already int64, cause error) error {
	if alive := w.alive(ctx); alive != nil {
		return errors.Join(cause, alive)
	}
	before := w.cap
	defer func() { w.cap, w.tolerant = before, false }()
	met := int64(0)
	for _, w.cap = range aroundPages {
		w.tolerant, w.told = w.cap == 1, ""
		err := w.verified(ctx, q, w.wholePass(ctx, already))
		if met = max(met, w.slice.Met-already); err == nil && w.told == "" {
			return nil
		}
		if err != nil && !poisoned(err) {
			return err
		}
	}
	counted, err := w.countRows(ctx, q)
	if err != nil && !poisoned(err) {
		return err
	}
	reason, _ := holeReason(cause)
	hole := state.Hole{Type: q.Type, From: w.slice.From, To: w.slice.To, Rows: -1, Reason: reason}
	if w.profile.Counts && err == nil && counted > met {
		hole.Rows = counted - met
	}
	w.slice.Met = already + met
	return w.addHole(ctx, hole)
}

// emitInWindow writes a row of the slice's window. A server that ignores the window gives the rows of others, too.
func (w *walk) emitInWindow(row *fhir.Entry) error {
	if !w.slice.To.IsZero() && (row.LastUpdated.Before(w.slice.From) || !row.LastUpdated.Before(w.slice.To)) {
		return nil
	}
	return w.emit(row)
}

// granulePages reads a second or millisecond with more rows than a page has. The boundary knows all ids of the second.
func (w *walk) granulePages(ctx context.Context, q fhir.Query) error {
	if w.slice.Strategy == state.Keyset {
		q.Sort = "_lastUpdated"
	}
	if w.profile.Counts { // which tell whether pages of any size held all
		w.granuleRows = w.besideRows()
		defer func() { w.granuleRows = 0 }()
	}
	take, broke := w.takeOnce(q, newIDSet())
	return w.verified(ctx, q, func(q fhir.Query) (int64, error) { return w.pass(ctx, q, take, broke) })
}

// takeOnce returns what writes each row of a window that the boundary does not know, and what takes a page of them back.
// seen has the window's rows in the end, also those that were known before.
func (w *walk) takeOnce(q fhir.Query, seen *idSet) (take func(*fhir.Entry) error, broke func() error) {
	take = func(row *fhir.Entry) error {
		if row.LastUpdated.Before(q.From) || !row.LastUpdated.Before(q.To) {
			return nil
		}
		seen.add(row.ID)
		if _, known := w.boundary[row.ID]; known {
			return nil
		}
		w.added = append(w.added, row.ID)
		w.boundary[row.ID] = struct{}{}
		if err := w.countMet(row); err != nil {
			return err
		}
		return w.emit(row)
	}
	broke = func() error {
		for _, id := range w.added {
			delete(w.boundary, id)
		}
		if w.written == nil {
			return nil
		}
		return w.loadWritten()
	}
	return take, broke
}

// verified repeats a pass until it met as many different rows as the server counted before it: pages that shift under
// writes give themselves away. A window that has settled only loses rows, so that is enough. Without a window rows come in
// as well and can hide in the counts that a row was passed over: then the count after the pass has to agree, too, and a
// pass of several pages has to bring nothing that an earlier one did not. Rows of several passes are united. Without counts
// only the latter is asked for, and the export says so. Counts and pages that end at the same limit are seen through by
// another order (see endsEarly).
func (w *walk) verified(ctx context.Context, q fhir.Query, pass func(fhir.Query) (int64, error)) error {
	var before, unique, after int64
	var early bool
	var err error
	for try := range maxPasses {
		written := w.slice.Written
		w.warned = false
		if before, err = w.countRows(ctx, q); err != nil {
			return err
		}
		unique, err = pass(q)
		if errors.Is(err, errExpired) {
			continue
		}
		if err != nil {
			return err
		}
		if w.warned && try < maxPasses-1 { // one server says so when rows have shifted between its pages
			continue
		}
		agreed := !q.To.IsZero() || !w.linked || w.slice.Written == written
		if w.profile.Counts {
			if after = before; q.To.IsZero() {
				if after, err = w.countRows(ctx, q); err != nil {
					return err
				}
			}
			agreed = agreed && before == after && unique == after
		}
		if early = false; agreed {
			if early, err = w.endsEarly(ctx, q, unique); err != nil || !early {
				return err
			}
		}
	}
	if errors.Is(err, errExpired) {
		return fmt.Errorf("%w: %w", errIncomplete, err)
	}
	if early {
		return fmt.Errorf("the server's pages and counts end at %d rows: %w", unique, errIncomplete)
	}
	if !q.To.IsZero() && w.profile.TypeHistory && w.slice.Strategy != state.Paging {
		return nil // writes to just these rows; the proof of the slice knows from the history which have left
	}
	return fmt.Errorf("the server's pages held %d rows, it counted %d before and %d after: %w", unique, before, after, errIncomplete)
}

func (w *walk) countRows(ctx context.Context, q fhir.Query) (n int64, err error) {
	if !w.profile.Counts {
		return 0, nil
	}
	err = w.pace.do(ctx, func() error {
		n, err = w.Client.Count(ctx, q)
		return err
	})
	return n, err
}

// passRows is how many rows the pages of a pass have: users who come do not make them smaller, unless they are of one granule.
func (w *walk) passRows() int {
	if w.granuleRows > 0 {
		return w.granuleRows
	}
	return w.bounded(w.pageSize())
}

// pass follows the next links once and hands each row to take, some perhaps twice. broke takes a page back that broke
// off before it is asked for again. It returns how many different rows there were.
func (w *walk) pass(ctx context.Context, q fhir.Query, take func(*fhir.Entry) error, broke func() error) (int64, error) {
	q.Count, q.ServerPages = w.passRows(), true
	ids := newIDSet()
	w.passed, w.first = ids, ""
	var links chain
	link := ""
	w.linked = false
	for {
		known := len(ids.seen)
		next, err := w.serverPage(ctx, q, link, ids, take, broke)
		if err != nil {
			return int64(len(ids.seen)), err
		}
		if err := w.committed(ctx); err != nil {
			return 0, err
		}
		if next == "" {
			return int64(len(ids.seen)), nil
		}
		if !links.goesOn(next, len(ids.seen) > known) {
			if w.profile.Counts { // the count tells whether all rows were met by then
				return int64(len(ids.seen)), nil
			}
			return 0, fmt.Errorf("the server's next links do not end: %w", errIncomplete)
		}
		link, w.linked = next, true
	}
}

// serverPage reads the first page of q, or the one behind link.
func (w *walk) serverPage(
	ctx context.Context, q fhir.Query, link string, ids *idSet, take func(*fhir.Entry) error, broke func() error,
) (next string, err error) {
	slow := 0
	err = w.pace.doWith(ctx, nil, w.tries(), func() error {
		before, asked := *w.slice, time.Now()
		w.added = w.added[:0]
		next, err = w.readServerPage(ctx, q, link, ids, take)
		if err == nil {
			w.linkTook(link, time.Since(asked))
			w.calmer()
			w.keepPage()
			return nil
		}
		err = errors.Join(err, w.takeBack(before), broke())
		if count := w.slower(err, q.Count); count < q.Count && link == "" {
			q.Count = count
		} else if fhir.TimedOut(err) && link != "" { // the page size stands in the link: another pass asks for less
			if slow++; slow >= slowLinks {
				return fmt.Errorf("%w: %w", errExpired, errors.Join(errIncomplete, err))
			}
		}
		return err
	})
	if link != "" && expired(err) {
		return "", fmt.Errorf("%w: %w", errExpired, err)
	}
	return next, err
}

// linkSleep is how long a server may sleep before it answers the first link of a pass. HAPI does so for half a second, and then looks
// whether the search behind it is complete.
const linkSleep = 600 * time.Millisecond

// linkTook notes how long a page of a pass took. The first link costs a server about as much as the page before it; what it takes beyond
// twice that, the server has slept.
func (w *walk) linkTook(link string, took time.Duration) {
	if link == "" {
		w.usual = took
		return
	}
	if w.usual > 0 && took > 2*w.usual {
		w.limiter.idled(min(took-2*w.usual, linkSleep))
	}
	w.usual = 0
}

// slowLinks is how many timeouts it takes to give a next link up.
const slowLinks = 2

// expired tells whether the answer to a next link says that the server forgot what it belongs to.
func expired(err error) bool {
	switch fhir.StatusOf(err) {
	case 400, 404, 409, 410, 412, 422:
		return true
	}
	return false
}

func (w *walk) readServerPage(
	ctx context.Context, q fhir.Query, link string, ids *idSet, take func(*fhir.Entry) error,
) (next string, err error) {
	page, err := w.fetch(ctx, nil, q, link)
	if err != nil {
		return "", err
	}
	page.Collect(w.filter.compartment, len(w.job.Referenced) > 0)
	w.bare = w.bare[:0]
	count := func(row *fhir.Entry) error {
		if ids.add(row.ID); w.first == "" {
			w.first = row.ID
		}
		return take(row)
	}
	err = page.Each(func(row *fhir.Entry) error {
		if skip, err := w.skip(row); skip || err != nil {
			return err
		}
		return count(row)
	})
	if err != nil {
		return "", err
	}
	if _, err := w.eachBare(ctx, count); err != nil {
		return "", err
	}
	return page.Next()
}
