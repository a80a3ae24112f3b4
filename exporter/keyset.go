package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// maxIdle is how many pages in a row may bring nothing. More means that a bound is ignored.
const maxIdle = 10

const (
	// pageBytes is the size in bytes that pages are aimed at, firstRowBytes what a row is taken to have before one was
	// seen, minPageRows the fewest rows asked for.
	pageBytes     = 1 << 20
	firstRowBytes = 2 << 10
	minPageRows   = 50
)

// outcome is what one page of a keyset walk said.
type outcome struct {
	rows   int  // of the slice's type
	fresh  int  // met for the first time
	raced  int  // left the window while the page was read
	next   bool // the server offers a next link
	last   time.Time
	second time.Time // the second of last
	// ids are the rows met in that second on this page; hot tells how many rows of the page lie in it.
	ids []string
	hot int
}

// keyset reads a window by first pages only: each begins at the time of the last row seen, so that nothing depends on
// the server's paging. q holds the window.
func (w *walk) keyset(ctx context.Context, q fhir.Query) error {
	q.Sort, q.Count = "_lastUpdated", w.pageRows()
	idle := 0
	for {
		page, err := w.keysetPage(ctx, q)
		if err != nil {
			return err
		}
		if page.fresh > 0 {
			idle = 0
		} else if idle++; idle > maxIdle {
			return fmt.Errorf("no progress: %w", errStrategy)
		}
		done, err := w.advance(ctx, q, page)
		if err != nil {
			return err
		}
		if done {
			return w.committed(ctx)
		}
		q.Count = w.pageRows()
		w.fetchAhead(ctx, w.at(q))
		if err := w.committed(ctx); err != nil {
			return err
		}
	}
}

// pageRows is how many rows to ask for, so that a page has about pageBytes: a server that builds pages in memory, several
// at once, is slowed down by large ones, and small ones cost more requests than they need.
func (w *walk) pageRows() int {
	average := int64(firstRowBytes)
	if w.seenRows > 0 {
		average = w.seenBytes/w.seenRows + 1
	}
	return int(min(int64(w.pageSize()), max(minPageRows, pageBytes/average)))
}

// at is the query for the page at the cursor.
func (w *walk) at(q fhir.Query) fhir.Query {
	if !w.slice.Cursor.IsZero() {
		q.From = w.slice.Cursor
	}
	return q
}

// advance moves the cursor behind a page and tells whether the window is done.
func (w *walk) advance(ctx context.Context, q fhir.Query, page *outcome) (done bool, err error) {
	full := page.next || page.rows >= q.Count
	switch {
	case page.rows == 0 && page.next: // pages without rows but with a link are the server's own business
		return false, fmt.Errorf("empty page with a next link: %w", errStrategy)
	case page.rows == 0:
		return true, nil
	case page.raced == page.rows: // all changed under the reading: asked again, they are not in the window any more
		return false, nil
	}
	before := w.slice.Cursor
	w.moveCursor(page, q.Count) // also behind the last page: a restart before the slice is done reads it again
	switch {
	case !full && (page.fresh == 0 && !w.metLess() || !w.profile.HAPI || w.metAll()):
		// HAPI gives no link here, so a short page is the end only when all that was counted is met, or when another
		// page brings nothing new.
		return true, nil
	case w.slice.Cursor.After(before), !full && page.fresh > 0:
		return false, nil
	}
	// A full page within one granule, or a short one with nothing new although more was counted: the server cuts pages.
	return false, w.hotGranule(ctx, q)
}

// metAll tells whether as many rows were met as were counted when the slice was planned.
func (w *walk) metAll() bool {
	return len(w.slice.Lists) == 0 && w.slice.Counted > 0 && w.slice.Met >= w.slice.Counted
}

// metLess tells whether fewer rows were met than were counted. Lists have no count of their own.
func (w *walk) metLess() bool { return len(w.slice.Lists) == 0 && w.slice.Met < w.slice.Counted }

// moveCursor sets the cursor to the last row's time. It is a whole second as long as that is cheap, because servers
// misread fractions; in a crowded second it is a millisecond.
func (w *walk) moveCursor(page *outcome, pageSize int) {
	if !page.second.Equal(w.slice.Cursor.Truncate(time.Second)) || w.slice.Cursor.IsZero() {
		clear(w.boundary)
	}
	for _, id := range page.ids {
		w.boundary[id] = struct{}{}
	}
	cursor := page.second
	if w.profile.Milliseconds && (page.hot > pageSize/8 || !cursor.After(w.slice.Cursor)) {
		cursor = page.last.Truncate(time.Millisecond)
	}
	if cursor.After(w.slice.Cursor) {
		w.slice.Cursor = cursor
	}
}

// hotGranule reads a second or millisecond that holds more rows than a page through the server's own pages, and goes
// behind it.
func (w *walk) hotGranule(ctx context.Context, q fhir.Query) error {
	granule := time.Second
	if w.profile.Milliseconds {
		granule = time.Millisecond
	}
	q.From = w.slice.Cursor
	end := w.slice.Cursor.Add(granule)
	if end.After(q.To) {
		end = q.To
	}
	q.To = end
	if err := w.granulePages(ctx, q); err != nil {
		return err
	}
	if !end.Truncate(time.Second).Equal(w.slice.Cursor.Truncate(time.Second)) {
		clear(w.boundary)
	}
	w.slice.Cursor = end
	return nil
}

// keysetPage reads one page, again and again until it was read whole; a page that breaks off leaves nothing behind.
func (w *walk) keysetPage(ctx context.Context, q fhir.Query) (*outcome, error) {
	var result *outcome
	asked := w.at(q)
	err := w.pace.do(ctx, func() error {
		before := *w.slice
		page, err := w.fetch(ctx, asked)
		if err == nil {
			result, err = w.readKeyset(page, asked)
		}
		if err != nil {
			err = errors.Join(err, w.takeBack(before))
			if w.written != nil {
				err = errors.Join(err, w.loadWritten())
			}
			return err
		}
		w.keepPage()
		return nil
	})
	if status := fhir.StatusOf(err); status == 400 && w.slice.Met == 0 && w.slice.Query == 0 {
		return nil, fmt.Errorf("%w: %w", errStrategy, err)
	}
	return result, err
}

// keepPage makes what a page wrote a part of the slice. Counts and sizes change together, so that the slice can be stored
// at any moment between two pages.
func (w *walk) keepPage() {
	w.slice.SpoolSize, w.slice.IndexSize = w.spool.rows.size, w.spool.index.size
}

// takeBack undoes a page that broke off.
func (w *walk) takeBack(before state.Slice) error {
	*w.slice = before
	return w.spool.cut(before.SpoolSize, before.IndexSize)
}

// readKeyset reads the rows of a page, filters and writes them.
func (w *walk) readKeyset(page *fhir.Page, q fhir.Query) (*outcome, error) {
	o := &outcome{}
	onPage := make(map[string]struct{}, q.Count)
	page.Collect(w.filter.compartment, false)
	err := page.Each(func(row *fhir.Entry) error {
		if skip, err := w.skip(row); skip || err != nil {
			return err
		}
		o.rows++
		w.seenRows, w.seenBytes = w.seenRows+1, w.seenBytes+row.Size()
		if !row.LastUpdated.Before(q.To) {
			o.raced++
			return nil
		}
		if row.LastUpdated.Before(q.From) {
			return fmt.Errorf("row before the window: %w", errStrategy)
		}
		if row.LastUpdated.Before(o.last) {
			return fmt.Errorf("rows are not ascending: %w", errStrategy)
		}
		o.last = row.LastUpdated
		if second := row.LastUpdated.Truncate(time.Second); !second.Equal(o.second) {
			o.second, o.ids, o.hot = second, o.ids[:0], 0
		}
		o.hot++
		if _, known := w.boundary[row.ID]; known {
			return nil
		}
		if _, twice := onPage[row.ID]; twice {
			return nil
		}
		onPage[row.ID] = struct{}{}
		o.ids = append(o.ids, row.ID)
		o.fresh++
		w.slice.Met++
		return w.emit(row)
	})
	if err != nil {
		return nil, err
	}
	next, err := page.Next()
	o.next = next != "" || errors.Is(err, fhir.ErrForeignLink) // not followed, so where it leads does not matter
	return o, nil
}

// skip tells which entries are not rows: remarks of the server, and resources that were included.
func (w *walk) skip(row *fhir.Entry) (bool, error) {
	switch {
	case row.Mode == "outcome" || row.Type == "OperationOutcome":
		if fhir.IsSevere(row.Resource) { // one that is too long for its entry is not a small remark either
			return true, fmt.Errorf("the server says that its answer is incomplete: %w", fhir.ErrMalformed)
		}
		return true, nil
	case row.Mode == "include":
		return true, nil
	case row.Type != w.slice.Type:
		return true, fmt.Errorf("row of another type: %w", errStrategy)
	case row.ID == "" || row.Size() == 0:
		return true, fmt.Errorf("row without a resource: %w", fhir.ErrMalformed)
	}
	return false, nil
}

// pending is a page that was asked for ahead.
type pending struct {
	query fhir.Query
	done  chan struct{}
	page  *fhir.Page
	err   error
}

// fetchAhead asks for the next page while the one before is made durable. Only the request runs ahead; the body waits
// in the connection, so that memory does not grow. The walk's context ends it.
func (w *walk) fetchAhead(ctx context.Context, q fhir.Query) {
	ahead := &pending{query: q, done: make(chan struct{})}
	w.ahead = ahead
	go func() {
		defer close(ahead.done)
		ahead.page, ahead.err = w.Client.Search(ctx, q)
	}()
}

// fetch returns the page that was asked for ahead if it is the one, else asks for it.
func (w *walk) fetch(ctx context.Context, q fhir.Query) (*fhir.Page, error) {
	ahead := w.ahead
	w.ahead = nil
	if ahead != nil && ahead.query.Equal(q) {
		<-ahead.done
		return ahead.page, ahead.err
	}
	if err := ahead.drop(); err != nil {
		return nil, err
	}
	return w.Client.Search(ctx, q)
}

// drop ends a page that nobody wants any more. It may be called on nil.
func (p *pending) drop() error {
	if p == nil {
		return nil
	}
	<-p.done
	if p.page == nil {
		return nil
	}
	return p.page.Close()
}
