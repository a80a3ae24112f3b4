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
)

// pace is the budget of one job for trouble with the upstream or the bucket: it repeats what may succeed later, with
// growing jittered pauses, and gives up when nothing has succeeded for giveUp.
type pace struct {
	giveUp time.Duration
	// waiting is told of each pause. May be nil.
	waiting func(err error, wait time.Duration)

	mu   sync.Mutex
	last time.Time // of the last success
}

// do calls ask until it succeeds, fails for good, or the budget is spent.
func (p *pace) do(ctx context.Context, ask func() error) error {
	began, unclear := time.Now(), 0
	for try := 0; ; try++ {
		err := ask()
		if err == nil {
			p.mu.Lock()
			p.last = time.Now()
			p.mu.Unlock()
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch classify(err) {
		case final:
			return err
		case unsure:
			if unclear++; unclear == unclearTries {
				return err
			}
		}
		p.mu.Lock()
		spent := time.Since(began) > p.giveUp && time.Since(p.last) > p.giveUp
		p.mu.Unlock()
		if spent {
			return fmt.Errorf("%w: %w", errGaveUp, err)
		}
		wait := pause(try, err)
		if p.waiting != nil {
			p.waiting(err, wait)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// verdict says what an error means for a repetition.
type verdict int

const (
	final  verdict = iota // the same request will fail again
	unsure                // worth a few tries
	later                 // the server is overloaded or away
)

// classify is the failure table's column "meaning" (upstream answers and what a crawler does about them).
func classify(err error) verdict {
	var response *fhir.ResponseError
	switch {
	case errors.Is(err, errIncomplete), errors.Is(err, errStrategy), errors.Is(err, errLocal), errors.Is(err, fhir.ErrSpill):
		return final
	case errors.Is(err, fhir.ErrForeignLink):
		return final
	case errors.Is(err, fhir.ErrMalformed):
		return unsure
	case errors.As(err, &response):
		switch {
		case response.Temporary():
			return later
		case response.StatusCode >= 500 && response.StatusCode != 501:
			return unsure
		}
		return final
	}
	return later // no answer at all
}

// pause is how long to wait before the next try: what the server asks for, else exponential with jitter.
func pause(try int, err error) time.Duration {
	var response *fhir.ResponseError
	if errors.As(err, &response) && response.RetryAfter > 0 {
		return min(response.RetryAfter, maxPause)
	}
	wait := min(firstPause<<min(try, 10), maxPause)
	return wait/2 + rand.N(wait/2)
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
