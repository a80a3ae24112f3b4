package exporter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"sidecar/exporter/fhir"
)

var (
	// errGaveUp ends a job whose upstream answered nothing for too long.
	errGaveUp = errors.New("the server could not be reached for too long")
	// errIncomplete ends a job that would have a hole.
	errIncomplete = errors.New("incomplete")
)

const (
	firstPause = time.Second
	maxPause   = 5 * time.Minute
	// unclearTries is how often an answer is asked for that may be damaged for good: 500, a cut body, a login page.
	unclearTries = 4
	// loanPause is how often it is looked whether a client has brought other credentials, which costs nothing.
	loanPause = time.Second
)

// pace is the budget of one job for trouble with the upstream or the bucket: it repeats what may succeed later, with
// growing jittered pauses, and gives up when nothing has succeeded for giveUp.
type pace struct {
	giveUp time.Duration
	// limiter says how many requests of all jobs may be under way; nil for the bucket.
	limiter *limiter
	// waiting is told of each pause. May be nil.
	waiting func(err error, wait time.Duration)

	mu   sync.Mutex
	last time.Time // of the last success
}

// insideKey marks a context whose holder has a right of the limiter already.
type insideKey struct{}

// inside returns the context for requests that are made while the page of another one is read: they need no right of their
// own, for which all workers could wait in a circle.
func inside(ctx context.Context) context.Context { return context.WithValue(ctx, insideKey{}, true) }

// do calls ask until it succeeds, fails for good, or the budget is spent. A call within another one needs the context of
// inside: each holds a right of the limiter while it asks.
func (p *pace) do(ctx context.Context, ask func() error) error {
	return p.doWith(ctx, nil, unclearTries, ask)
}

// doWith is do with a right for the first request that the caller has got already, nil for none, and a number of tries for
// answers of unclear fate.
func (p *pace) doWith(ctx context.Context, held *ticket, tries int, ask func() error) error {
	began, unclear, denied := time.Now(), 0, false
	for try := 0; ; try++ {
		waited, err := p.ask(ctx, held, ask)
		held = nil
		if err == nil {
			p.succeeded()
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if began = began.Add(waited.users); waited.hours {
			began = time.Now()
		}
		switch classify(err) {
		case final:
			return err
		case once:
			if denied {
				return err
			}
			denied = true
		case unsure:
			if unclear++; unclear >= tries {
				return err
			}
		}
		if p.spent(began) {
			return fmt.Errorf("%w: %w", errGaveUp, err)
		}
		wait := p.pause(try, err)
		if p.waiting != nil {
			p.waiting(err, wait)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// ask sends one request when the limiter lets it.
func (p *pace) ask(ctx context.Context, held *ticket, ask func() error) (before waited, err error) {
	inner := ctx.Value(insideKey{}) != nil
	switch {
	case p.limiter == nil:
		return before, ask()
	case inner:
		err = p.limiter.awaitHold(ctx)
	case held == nil:
		held, err = p.limiter.acquire(ctx)
	}
	if err != nil {
		return before, err
	}
	if held != nil {
		before = held.waited
	}
	ended := context.Canceled // also by a panic, which says nothing about the server
	defer func() { p.limiter.release(held, ended) }()
	err = ask()
	if wait := p.asked(err); wait > 0 {
		p.limiter.hold(wait)
	}
	if ended = err; ctx.Err() != nil { // by us, which says as little
		ended = context.Cause(ctx)
	}
	return before, err
}

func (p *pace) succeeded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
}

// spent tells whether nothing has succeeded for too long.
func (p *pace) spent(began time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(began) > p.giveUp && time.Since(p.last) > p.giveUp
}

// verdict says what an error means for a repetition.
type verdict int

const (
	final  verdict = iota // the same request will fail again
	once                  // worth one more try
	unsure                // worth a few tries
	later                 // the server is overloaded or away
)

// classify is the failure table's column "meaning" (upstream answers and what a crawler does about them).
func classify(err error) verdict {
	var response *fhir.ResponseError
	var partial *partialError
	switch {
	case errors.Is(err, errIncomplete), errors.Is(err, errStrategy), errors.Is(err, errSuperset), errors.Is(err, errLocal), errors.Is(err, errNoHistory), errors.Is(err, fhir.ErrSpill):
		return final
	case errors.Is(err, fhir.ErrForeignLink), errors.Is(err, fhir.ErrTooLarge), errors.Is(err, fhir.ErrNotApplied):
		return final
	case errors.Is(err, fhir.ErrMalformed), errors.As(err, &partial), errors.Is(err, fhir.ErrClientRefused):
		return unsure
	case errors.As(err, &response):
		switch {
		case response.Temporary():
			return later
		case response.StatusCode == 401: // a token may just have been renewed
			return once
		case response.StatusCode >= 500 && response.StatusCode != 501:
			return unsure
		}
		return final
	}
	return later // no answer at all
}

// pause is how long to wait before the next try: a little longer than the server asks for, else exponential with jitter.
func (p *pace) pause(try int, err error) time.Duration {
	if errors.Is(err, fhir.ErrNoLoan) {
		return loanPause
	}
	if wait := p.asked(err); wait > 0 {
		return jittered(wait)
	}
	wait := min(firstPause<<min(try, 10), maxPause)
	return wait/2 + rand.N(wait/2)
}

// asked is the pause that the server asks for with an error, 0 for none. Beyond the time after which a job gives up nobody
// waits: then the server is asked once more.
func (p *pace) asked(err error) time.Duration {
	var response *fhir.ResponseError
	if !errors.As(err, &response) {
		return 0
	}
	return min(response.RetryAfter, p.giveUp)
}

// jittered is up to a tenth, and a second, longer than a wait.
func jittered(wait time.Duration) time.Duration {
	return wait + rand.N(min(wait/10, time.Second)+1)
}

// sleep waits, or returns the cause with which ctx ended.
func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
