package exporter

import (
	"context"
	"time"

	"sidecar/exporter/fhir"
)

// pending is a page that was asked for ahead.
type pending struct {
	query   fhir.Query
	limiter *limiter
	ticket  *ticket
	done    chan struct{}
	page    *fhir.Page
	err     error
}

// fetchAhead asks for the next page while the one before is made durable, if the limiter has a right to spare. Only the
// request runs ahead; the body waits in the connection, so that memory does not grow. The walk's context ends it.
func (w *walk) fetchAhead(ctx context.Context, q fhir.Query) {
	held := w.limiter.try()
	if held == nil {
		return
	}
	ahead := &pending{query: q, limiter: w.limiter, ticket: held, done: make(chan struct{})}
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

// takeAhead returns the page that was asked for ahead if it is the one that is wanted; another one is dropped.
func (w *walk) takeAhead(q fhir.Query, link string) (*pending, error) {
	ahead := w.ahead
	w.ahead = nil
	if ahead != nil && link == "" && ahead.query.Equal(q) {
		return ahead, nil
	}
	return nil, ahead.drop()
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
	<-p.done
	var err error
	if p.page != nil {
		err = p.page.Close()
	}
	p.limiter.release(p.ticket, context.Canceled)
	return err
}
