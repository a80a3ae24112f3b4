package exporter

import (
	"context"
	"time"

	"sidecar/exporter/fhir"
)

const (
	// guessBytes is how large a page may be that is taken into memory for a guess at the next one. That many are held at
	// once as there are pairs of workers, since a guess needs a right of its own.
	guessBytes = 2 * pageBytes
	// unsurePages is how many pages are read without a guess after one that was wrong or could not be made.
	unsurePages = 50
)

// pending is a page that was asked for ahead.
type pending struct {
	query   fhir.Query
	cancel  context.CancelFunc
	limiter *limiter
	ticket  *ticket
	done    chan struct{}
	page    *fhir.Page
	err     error
}

// guess asks for the next page before this one is read, if the limiter has a right to spare: the last times in its text
// tell where the next will begin. The server works while we do. It is no more than a guess: keyset compares it with what it
// wants once the page was read.
func (w *walk) guess(ctx context.Context, page *fhir.Page, q fhir.Query) {
	if w.unsure > 0 {
		w.unsure--
		return
	}
	if !w.until.IsZero() {
		return
	}
	held := w.limiter.try()
	if held == nil {
		return
	}
	defer func() { w.limiter.release(held, context.Canceled) }() // unless the guess has it
	if !page.Buffer(guessBytes) {
		w.unsure = unsurePages
	} else if from := w.guessCursor(page, q); from.After(w.slice.Cursor) {
		q.From, q.Count = from, w.pageRows()
		w.ask(ctx, q, held)
		held = nil
	}
}

// guessCursor is where the cursor will stand behind a page if all that it seems to hold are rows, zero where the page may be
// the last one.
func (w *walk) guessCursor(page *fhir.Page, q fhir.Query) time.Time {
	if !page.Full(q.Count) {
		return time.Time{}
	}
	last, hot := time.Time{}, 0
	for at := range page.Times() {
		switch {
		case !at.Before(q.To): // not a row, or one behind the window
			continue
		case last.IsZero():
			last = at
		}
		if hot > q.Count/hotPart || at.Before(last.Truncate(time.Second)) {
			break
		}
		hot++
	}
	return w.cursorBehind(last, hot, q.Count)
}

// fetchAhead asks for the next page while the one before is made durable, unless that was guessed right, if the limiter has
// a right to spare. Only the request runs ahead; the body waits in the connection, so that memory does not grow.
func (w *walk) fetchAhead(ctx context.Context, q fhir.Query) error {
	if w.ahead.fits(q) {
		return nil
	}
	if w.ahead != nil {
		w.unsure = unsurePages
		if err := w.dropAhead(); err != nil {
			return err
		}
	}
	if held := w.limiter.try(); held != nil {
		w.ask(ctx, q, held)
	}
	return nil
}

// ask asks for a page that is fetched later.
func (w *walk) ask(ctx context.Context, q fhir.Query, held *ticket) {
	ctx, cancel := context.WithCancel(ctx)
	ahead := &pending{query: q, cancel: cancel, limiter: w.limiter, ticket: held, done: make(chan struct{})}
	w.ahead = ahead
	go func() {
		defer close(ahead.done)
		ahead.err = guarded(func() (err error) {
			ahead.page, err = w.search(ctx, q)
			return err
		})
	}()
}

// search asks for a page and tells the limiter how long the server took to begin its answer.
func (w *walk) search(ctx context.Context, q fhir.Query) (*fhir.Page, error) {
	began := time.Now()
	page, err := w.Client.Search(ctx, q)
	if err == nil {
		w.limiter.answered(began, time.Since(began))
	}
	return page, err
}

// fits tells whether the page is the one that q asks for, if with a few rows more or less. It may be called on nil.
func (p *pending) fits(q fhir.Query) bool {
	if p == nil {
		return false
	}
	q.Count = p.query.Count
	return p.query.Equal(q)
}

// takeAhead returns the page that was asked for ahead if it is the one that is wanted; another one is dropped.
func (w *walk) takeAhead(q fhir.Query, link string) (*pending, error) {
	if link != "" || !w.ahead.fits(q) {
		return nil, w.dropAhead()
	}
	ahead := w.ahead
	w.ahead = nil
	return ahead, nil
}

// dropAhead gives up the page that was asked for ahead, if there is one, and the right that it holds. Whoever asks for
// anything else does so first: with one right in all there would be none to wait for.
func (w *walk) dropAhead() error {
	ahead := w.ahead
	w.ahead = nil
	return ahead.drop()
}

// right is the limiter's right that the page was asked with. It may be called on nil.
func (p *pending) right() *ticket {
	if p == nil {
		return nil
	}
	return p.ticket
}

// fetch returns the page that was asked for ahead, else asks for the one of q or behind link.
func (w *walk) fetch(ctx context.Context, ahead *pending, q fhir.Query, link string) (*fhir.Page, error) {
	switch {
	case ahead != nil:
		<-ahead.done
		return ahead.page, ahead.err
	case link != "":
		return w.Client.Follow(ctx, q.Type, "searchset", link)
	}
	return w.search(ctx, q)
}

// drop ends a page that nobody wants any more. It may be called on nil.
func (p *pending) drop() error {
	if p == nil {
		return nil
	}
	p.cancel()
	<-p.done
	var err error
	if p.page != nil {
		err = p.page.Close()
	}
	p.limiter.release(p.ticket, context.Canceled)
	return err
}
