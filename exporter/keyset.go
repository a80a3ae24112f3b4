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
	// hotPart is the part of a page's rows that makes a second a crowded one when they lie in it.
	hotPart = 8
	// crowdPages is how many times as large as others a page beside users may be to hold all rows of one moment.
	crowdPages = 8
)

// outcome is what one page of a keyset walk said.
type outcome struct {
	asked  int  // rows asked for
	rows   int  // of the slice's type
	fresh  int  // met for the first time
	raced  int  // written after T while the page was read
	beyond bool // the last row lies behind the window: some servers read "lt" as "until the end of"
	next   bool // the server offers a next link
	link   string
	last   time.Time
	second time.Time // the second of last
	// ids are the rows met in that second on this page; hot tells how many rows of the page lie in it.
	ids []string
	hot int
}

// keyset reads a window by first pages only: each begins at the time of the last row seen, so that nothing depends on
// the server's paging. A page that cannot be had is closed in on (see narrow).
func (w *walk) keyset(ctx context.Context, window fhir.Query) (err error) {
	defer func() { err = errors.Join(err, w.dropAhead()) }()
	window.Sort = "_lastUpdated"
	idle, empty, link := 0, 0, ""
	for {
		q := w.part(window)
		page, err := w.keysetPage(ctx, q, link)
		link = ""
		switch {
		case err != nil:
		case page.rows == 0 && page.next: // access filters and some databases give such pages
			if link = page.link; link == "" || empty >= maxStalePages {
				return fmt.Errorf("empty pages do not end: %w", errStrategy)
			}
			empty++
			continue
		case page.fresh > 0:
			idle, empty = 0, 0
		default:
			if idle++; idle > maxIdle {
				return fmt.Errorf("no progress: %w", errStrategy)
			}
		}
		done := false
		if err == nil {
			done, err = w.advance(ctx, q, page)
		}
		if err != nil {
			if done, err = w.narrow(ctx, window, err); err != nil {
				return err
			}
		}
		if done && w.behind(window, q.To) {
			return w.committed(ctx)
		}
		if !done {
			if err := w.fetchAhead(ctx, w.part(window)); err != nil {
				return err
			}
		}
		if err := w.committed(ctx); err != nil {
			return err
		}
	}
}

// behind goes on behind a part of the window that is done, and tells whether it was the last one.
func (w *walk) behind(window fhir.Query, end time.Time) bool {
	w.until, w.closing = time.Time{}, false
	if !end.Before(window.To) {
		return true
	}
	w.jump(end)
	return false
}

// jump sets the cursor to a moment before which everything was read.
func (w *walk) jump(to time.Time) {
	if !to.Truncate(time.Second).Equal(w.slice.Cursor.Truncate(time.Second)) {
		clear(w.boundary)
	}
	w.slice.Cursor = to
}

// pageRows is how many rows to ask for, so that a page has about pageBytes: a server that builds pages in memory, several
// at once, is slowed down by large ones, and small ones cost more requests than they need. Beside users they are smaller.
func (w *walk) pageRows() int {
	return min(w.wideRows(), max(w.besideRows(), w.least))
}

// besideRows is how many rows a page has beside users, as many as it may have while there are none.
func (w *walk) besideRows() int {
	beside := w.limiter.pageBytes(w.slice.Type)
	if beside == 0 {
		return w.wideRows()
	}
	return min(w.wideRows(), max(minPageCap, int(beside/w.rowBytes())))
}

// wideRows is how many rows to ask for while there are no users.
func (w *walk) wideRows() int {
	return w.bounded(int(min(int64(w.pageSize()), max(minPageRows, pageBytes/w.rowBytes()))))
}

// rowBytes is about how large a row is.
func (w *walk) rowBytes() int64 {
	if w.seenRows == 0 {
		return firstRowBytes
	}
	return w.seenBytes/w.seenRows + 1
}

// part is the query for the page at the cursor, up to the end of the part that is closed in on.
func (w *walk) part(window fhir.Query) fhir.Query {
	window.Count = w.pageRows()
	if !w.slice.Cursor.IsZero() {
		window.From = w.slice.Cursor
	}
	if !w.until.IsZero() {
		window.To = w.until
	}
	return window
}

// advance moves the cursor behind a page and tells whether the window is done.
func (w *walk) advance(ctx context.Context, q fhir.Query, page *outcome) (done bool, err error) {
	full := page.next || page.rows >= page.asked
	switch {
	case page.rows == 0:
		return true, nil
	case page.fresh == 0 && page.beyond: // rows ascend, so the window has no more
		return true, nil
	case page.raced == page.rows: // all changed under the reading: asked again, they are not in the window any more
		return false, nil
	}
	before := w.slice.Cursor
	w.moveCursor(page, page.asked) // also behind the last page: a restart before the slice is done reads it again
	switch {
	case !full && (page.fresh == 0 && !w.metLess() || !w.profile.HAPI || w.metAll()):
		// HAPI gives no link here, so a short page is the end only when all that was counted is met, or when another
		// page brings nothing new.
		return true, nil
	case w.slice.Cursor.After(before), !full && page.fresh > 0:
		if w.least -= w.least / 8; w.profile.Counts {
			w.least = 0 // the next crowd will be counted
		}
		return false, nil
	case !full && !w.until.IsZero(): // what was counted is the whole window's
		return true, nil
	}
	if full && 2*page.asked <= w.wideRows() { // a small one, beside users
		if w.least, err = w.crowd(ctx, q, page.asked); w.least > page.asked || err != nil {
			return false, err
		}
	}
	// A full page within one granule, or a short one with nothing new although more was counted: the server cuts pages.
	return false, w.hotGranule(ctx, q)
}

// crowd is how many rows the next page has to have, since one of asked rows does not hold those of the cursor's granule; 0 where the
// server's pages shall be followed. Where counts tell, it is no larger than it has to be, else twice as large.
func (w *walk) crowd(ctx context.Context, q fhir.Query, asked int) (rows int, err error) {
	if !w.profile.Counts {
		return 2 * asked, nil
	}
	if err := w.dropAhead(); err != nil {
		return 0, err
	}
	counted, err := w.countRows(ctx, w.inGranule(q))
	if err != nil || counted >= int64(min(crowdPages*w.besideRows(), w.wideRows())) {
		return 0, err
	}
	return int(counted) + 1, nil
}

// inGranule is a query for the cursor's granule.
func (w *walk) inGranule(q fhir.Query) fhir.Query {
	end := w.slice.Cursor.Add(w.granule())
	if end.After(q.To) {
		end = q.To
	}
	q.From, q.To = w.slice.Cursor, end
	return q
}

// metAll tells whether as many rows were met as were counted when the slice was planned.
func (w *walk) metAll() bool {
	return !several(w.slice) && w.slice.Counted > 0 && w.slice.Met >= w.slice.Counted
}

// metLess tells whether fewer rows were met than were counted. Of several queries none has a count of its own.
func (w *walk) metLess() bool { return !several(w.slice) && w.slice.Met < w.slice.Counted }

// moveCursor sets the cursor to the last row's time. It is a whole second as long as that is cheap, because servers
// misread fractions; in a crowded second it is a millisecond.
func (w *walk) moveCursor(page *outcome, pageSize int) {
	if !page.second.Equal(w.slice.Cursor.Truncate(time.Second)) || w.slice.Cursor.IsZero() {
		clear(w.boundary)
	}
	for _, id := range page.ids {
		w.boundary[id] = struct{}{}
	}
	if cursor := w.cursorBehind(page.last, page.hot, pageSize); cursor.After(w.slice.Cursor) {
		w.slice.Cursor = cursor
	}
}

// cursorBehind is where to go on behind a page whose last row was written at last, with hot rows in that second.
func (w *walk) cursorBehind(last time.Time, hot, pageSize int) time.Time {
	cursor := last.Truncate(time.Second)
	if w.profile.Milliseconds && (hot > pageSize/hotPart || !cursor.After(w.slice.Cursor)) {
		cursor = last.Truncate(time.Millisecond)
	}
	return cursor
}

// granule is the smallest part of time that the server tells apart.
func (w *walk) granule() time.Duration {
	if w.profile.Milliseconds {
		return time.Millisecond
	}
	return time.Second
}

// hotGranule reads a second or millisecond that holds more rows than a page through the server's own pages, and goes
// behind it.
func (w *walk) hotGranule(ctx context.Context, q fhir.Query) error {
	if err := w.dropAhead(); err != nil {
		return err
	}
	q = w.inGranule(q)
	if err := w.granulePages(ctx, q); err != nil {
		return err
	}
	w.jump(q.To)
	return nil
}

// keysetPage reads one page, or the one behind link, again and again until it was read whole; a page that breaks off leaves
// nothing behind. After a timeout less is asked for.
func (w *walk) keysetPage(ctx context.Context, q fhir.Query, link string) (*outcome, error) {
	ahead, err := w.takeAhead(q, link)
	if err != nil {
		return nil, err
	}
	if ahead != nil {
		q.Count = ahead.query.Count
	}
	var result *outcome
	err = w.pace.doWith(ctx, ahead.right(), w.tries(), func() error {
		before, asked, known := *w.slice, time.Now(), w.seenBytes
		page, err := w.fetch(ctx, ahead, q, link)
		alone := ahead == nil
		ahead = nil
		if err == nil {
			w.guess(ctx, page, q)
			result, err = w.readKeyset(ctx, page, q)
		}
		if err == nil && alone {
			w.limiter.paged(w.slice.Type, w.seenBytes-known, time.Since(asked))
		}
		if err != nil {
			q.Count = w.slower(err, q.Count)
			err = errors.Join(err, w.dropAhead(), w.takeBack(before))
			if w.written != nil {
				err = errors.Join(err, w.loadWritten())
			}
			return err
		}
		w.calmer()
		w.keepPage()
		return nil
	})
	return result, err
}

// keepPage makes what a page wrote a part of the slice. Counts and sizes change together, so that the slice can be stored
// at any moment between two pages.
func (w *walk) keepPage() {
	w.spool.measure(w.slice)
}

// takeBack undoes a page that broke off.
func (w *walk) takeBack(before state.Slice) error {
	*w.slice = before
	w.refs = nil // of which the page may have added some
	return w.spool.cut(&before)
}

// readKeyset reads the rows of a page, filters and writes them.
func (w *walk) readKeyset(ctx context.Context, page *fhir.Page, q fhir.Query) (*outcome, error) {
	o := &outcome{asked: q.Count}
	onPage := make(map[string]struct{}, q.Count)
	w.bare, w.noted = w.bare[:0], false
	page.Collect(w.filter.compartment, len(w.job.Referenced) > 0)
	err := page.Each(func(row *fhir.Entry) error {
		if skip, err := w.skip(row); skip || err != nil {
			return err
		}
		if row.LastUpdated.Before(o.last) && row.LastUpdated.Before(q.To) {
			return fmt.Errorf("rows are not ascending: %w", errStrategy)
		}
		return w.meet(o, onPage, row, q)
	})
	if err != nil {
		return nil, err
	}
	gone, err := w.eachBare(ctx, func(row *fhir.Entry) error { return w.meet(o, onPage, row, q) })
	if err != nil {
		return nil, err
	}
	o.rows += gone // they stood on the page
	next, err := page.Next()
	o.link, o.next = next, next != "" || errors.Is(err, fhir.ErrForeignLink) // hardly ever followed, so it may lead anywhere
	if o.next && w.noted && o.rows > 0 && o.rows < q.Count {                 // the server says that it gives less than it is asked for
		w.clamp = o.rows
	}
	return o, nil
}

// meet takes one row of a page into account and writes it if it is new.
func (w *walk) meet(o *outcome, onPage map[string]struct{}, row *fhir.Entry, q fhir.Query) error {
	o.rows++
	w.seenRows, w.seenBytes = w.seenRows+1, w.seenBytes+row.Size()
	if row.LastUpdated.After(w.job.TransactionTime) && !row.LastUpdated.Before(q.To) {
		o.raced++
		return nil
	}
	if row.LastUpdated.Before(q.From) {
		return errBefore
	}
	if o.beyond = !row.LastUpdated.Before(q.To); o.beyond {
		return nil
	}
	if second := row.LastUpdated.Truncate(time.Second); second.After(o.second) {
		o.second, o.ids, o.hot = second, o.ids[:0], 0
	}
	if row.LastUpdated.After(o.last) {
		o.last = row.LastUpdated
	}
	inSecond := !row.LastUpdated.Before(o.second)
	if inSecond {
		o.hot++
	}
	if _, known := w.boundary[row.ID]; known {
		return nil
	}
	if _, twice := onPage[row.ID]; twice {
		return nil
	}
	onPage[row.ID] = struct{}{}
	if inSecond {
		o.ids = append(o.ids, row.ID)
	}
	o.fresh++
	if err := w.countMet(row); err != nil {
		return err
	}
	return w.emit(row)
}
