package exporter

import (
	"context"
	"errors"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// bisect reads a window without asking for an order: a part of it that does not fit into one page is halved, and one
// granule that does not fit is read through the server's own pages. A part that was not half full lets the next one be twice
// as long. The cursor is the end of the last part, so that a restart goes on there.
func (w *walk) bisect(ctx context.Context, window fhir.Query) error {
	window.ServerPages = true // a next link says that a page is not all
	if w.until.IsZero() {
		w.until = w.firstPart(window)
	}
	for {
		q := w.part(window)
		if !q.From.Before(q.To) && !q.From.IsZero() {
			return w.committed(ctx)
		}
		done, err := w.bisectPart(ctx, q)
		if err != nil {
			if done, err = w.narrow(ctx, window, err); err != nil {
				return err
			}
		}
		if !done {
			continue // a shorter part
		}
		if w.behind(window, q.To) {
			w.jump(q.To)
			return w.committed(ctx)
		}
		if !q.From.IsZero() {
			w.until = earlier(q.To.Add(w.next*q.To.Sub(q.From)), window.To)
		}
		if err := w.committed(ctx); err != nil {
			return err
		}
	}
}

// earlier returns the earlier one of a part's end and the window's; zero stands for the window's.
func earlier(end, window time.Time) time.Time {
	if !end.Before(window) {
		return time.Time{}
	}
	return end
}

// firstPart guesses from the count how long a part fits into a page.
func (w *walk) firstPart(window fhir.Query) time.Time {
	from := w.part(window).From
	left := w.slice.Counted - w.slice.Met
	if from.IsZero() || len(w.slice.Lists) > 0 || left <= int64(w.pageRows()) {
		return time.Time{}
	}
	pages := left/int64(w.pageRows()) + 1
	length := (window.To.Sub(from) / time.Duration(2*pages)).Truncate(time.Second)
	return earlier(from.Add(max(time.Second, length)), window.To)
}

// bisectPart reads a part of the window if it fits into one page, or through the server's pages if it cannot be halved.
// Otherwise it sets the end of a shorter part.
func (w *walk) bisectPart(ctx context.Context, q fhir.Query) (done bool, err error) {
	var fits bool
	err = w.pace.doWith(ctx, nil, w.tries(), func() error {
		before := *w.slice
		o, err := w.readPart(ctx, q)
		fits = err == nil && !o.next && o.rows < q.Count
		if fits {
			if w.next = 1; 2*o.rows < q.Count {
				w.next = 2
			}
			w.calmer()
			w.keepPage()
			return nil
		}
		q.Count = w.slower(err, q.Count)
		return errors.Join(err, w.undo(before, o))
	})
	if err != nil || fits {
		return fits, err
	}
	if middle, ok := w.middle(q); ok {
		w.until = middle
		return false, nil
	}
	w.next = 1
	if err := w.granulePages(ctx, q); err != nil {
		return false, err
	}
	return true, nil
}

// undo takes back what a page wrote that was not the whole part.
func (w *walk) undo(before state.Slice, o *outcome) error {
	err := w.takeBack(before)
	if o != nil {
		for _, id := range o.ids {
			delete(w.boundary, id)
		}
	}
	if w.written != nil {
		err = errors.Join(err, w.loadWritten())
	}
	return err
}

// readPart reads the rows of a page in whatever order. outcome.ids are all that it met.
func (w *walk) readPart(ctx context.Context, q fhir.Query) (*outcome, error) {
	o := &outcome{asked: q.Count}
	page, err := w.search(ctx, q)
	if err != nil {
		return o, err
	}
	w.bare = w.bare[:0]
	take := func(row *fhir.Entry) error {
		o.rows++
		w.seenRows, w.seenBytes = w.seenRows+1, w.seenBytes+row.Size()
		return w.takePart(o, row, q)
	}
	page.Collect(w.filter.compartment, len(w.job.Referenced) > 0)
	err = page.Each(func(row *fhir.Entry) error {
		if skip, err := w.skip(row); skip || err != nil {
			return err
		}
		return take(row)
	})
	if err != nil {
		return o, err
	}
	if _, err := w.eachBare(ctx, take); err != nil {
		return o, err
	}
	next, err := page.Next()
	o.next = next != "" || errors.Is(err, fhir.ErrForeignLink)
	return o, nil
}

// takePart writes a row of the part that is new.
func (w *walk) takePart(o *outcome, row *fhir.Entry, q fhir.Query) error {
	switch {
	case row.LastUpdated.Before(q.From):
		return errBefore
	case !row.LastUpdated.Before(q.To): // written meanwhile, or of the next part
		return nil
	}
	if _, known := w.boundary[row.ID]; known {
		return nil
	}
	w.boundary[row.ID] = struct{}{}
	o.ids = append(o.ids, row.ID)
	if err := w.countMet(row); err != nil {
		return err
	}
	return w.emit(row)
}
