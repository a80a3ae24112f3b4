package exporter

import (
	"context"
	"errors"
	"fmt"

	"sidecar/exporter/fhir"
)

const (
	// maxPasses is how often the server's pages are read until two counts agree with what they held.
	maxPasses = 5
	// maxEmptyPages bounds a chain of pages without rows.
	maxEmptyPages = 1000
)

// errExpired tells that the server forgot the search behind a next link. The rows are read again from the start.
var errExpired = errors.New("next link has expired")

// paging reads a whole slice by the server's next links.
func (w *walk) paging(ctx context.Context) error {
	for ; w.slice.Query < w.queries(); w.slice.Query++ {
		q := w.query()
		if w.profile.Keyset {
			q.Sort = "_lastUpdated"
		}
		err := w.verified(ctx, q, func(q fhir.Query) (int64, error) {
			unique, err := w.pass(ctx, q, w.emitInWindow, w.loadWritten)
			w.slice.Met = unique
			return unique, err
		})
		if err != nil {
			return err
		}
		if err := w.committed(ctx); err != nil {
			return err
		}
	}
	w.slice.Query-- // the last one, as after a keyset walk
	return nil
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
	q.Sort = "_lastUpdated"
	take := func(row *fhir.Entry) error {
		if _, known := w.boundary[row.ID]; known || row.LastUpdated.Before(q.From) || !row.LastUpdated.Before(q.To) {
			return nil
		}
		w.added = append(w.added, row.ID)
		w.boundary[row.ID] = struct{}{}
		w.slice.Met++
		return w.emit(row)
	}
	broke := func() error {
		for _, id := range w.added {
			delete(w.boundary, id)
		}
		if w.written == nil {
			return nil
		}
		return w.loadWritten()
	}
	return w.verified(ctx, q, func(q fhir.Query) (int64, error) { return w.pass(ctx, q, take, broke) })
}

// verified repeats a pass until it met as many different rows as the server counted before it: pages that shift under
// writes give themselves away. A window that has settled only loses rows, so that is enough. Without a window rows come in
// as well and can hide in the counts that a row was passed over: then the count after the pass has to agree, too, and a
// pass of several pages has to bring nothing that an earlier one did not. Rows of several passes are united. Without counts
// only the latter is asked for, and the export says so.
func (w *walk) verified(ctx context.Context, q fhir.Query, pass func(fhir.Query) (int64, error)) error {
	var before, unique, after int64
	for range maxPasses {
		var err error
		written := w.slice.Written
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
		same := !q.To.IsZero() || !w.linked || w.slice.Written == written
		if same && !w.profile.Counts {
			return nil
		}
		if after = before; q.To.IsZero() {
			if after, err = w.countRows(ctx, q); err != nil {
				return err
			}
		}
		if same && before == after && unique == after {
			return nil
		}
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

// pass follows the next links once and hands each row to take, some perhaps twice. broke takes a page back that broke
// off before it is asked for again. It returns how many different rows there were.
func (w *walk) pass(ctx context.Context, q fhir.Query, take func(*fhir.Entry) error, broke func() error) (int64, error) {
	q.Count, q.ServerPages = w.pageSize(), true
	ids := newIDSet()
	followed := map[string]bool{}
	link, empty := "", 0
	w.linked = false
	for {
		next, rows, err := w.serverPage(ctx, q, link, ids, take, broke)
		if err != nil {
			return 0, err
		}
		if err := w.committed(ctx); err != nil {
			return 0, err
		}
		if next == "" {
			return int64(len(ids.seen)), nil
		}
		if rows > 0 {
			empty = 0
		} else {
			empty++
		}
		if followed[next] || empty > maxEmptyPages {
			return 0, fmt.Errorf("the server's next links do not end: %w", errIncomplete)
		}
		followed[next], w.linked = true, true
		link = next
	}
}

// serverPage reads the first page of q, or the one behind link.
func (w *walk) serverPage(
	ctx context.Context, q fhir.Query, link string, ids *idSet, take func(*fhir.Entry) error, broke func() error,
) (next string, rows int, err error) {
	err = w.pace.do(ctx, func() error {
		before := *w.slice
		w.added = w.added[:0]
		next, rows, err = w.readServerPage(ctx, q, link, ids, take)
		if err != nil {
			return errors.Join(err, w.takeBack(before), broke())
		}
		w.keepPage()
		return nil
	})
	if link != "" && expired(err) {
		return "", 0, fmt.Errorf("%w: %w", errExpired, err)
	}
	return next, rows, err
}

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
) (next string, rows int, err error) {
	var page *fhir.Page
	if link == "" {
		page, err = w.Client.Search(ctx, q)
	} else {
		page, err = w.Client.Follow(ctx, q.Type, "searchset", link)
	}
	if err != nil {
		return "", 0, err
	}
	page.Collect(w.filter.compartment, false)
	err = page.Each(func(row *fhir.Entry) error {
		if skip, err := w.skip(row); skip || err != nil {
			return err
		}
		rows++
		ids.add(row.ID)
		return take(row)
	})
	if err != nil {
		return "", 0, err
	}
	next, err = page.Next()
	return next, rows, err
}
