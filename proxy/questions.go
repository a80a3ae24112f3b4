package proxy

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// questions are asked of the FHIR server for one request of a client, checksAtOnce at once. The first error ends them all.
type questions struct{ group *errgroup.Group }

// newQuestions returns none, and the context in which they are to be asked.
func newQuestions(ctx context.Context) (questions, context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(checksAtOnce)
	return questions{group}, ctx
}

func (q questions) ask(question func() error) {
	q.group.Go(func() error { return guarded(question) })
}

func (q questions) wait() error { return q.group.Wait() }

const (
	// turns bounds how many questions the server has to answer at once while there are users.
	turns = 2
	// turnFor is how long a question waits for its turn at most: nobody shall wait long for the answer to a kick-off, be there a
	// hundred types to ask for and a user at every moment.
	turnFor = 100 * time.Millisecond
)

// giveWay lets users go first, if there are any: it waits until fewer than turns questions are being asked and no user waits. A question
// that has waited for turnFor, or whose context has ended, waits no longer. done is to be called behind the question.
func (p *Proxy) giveWay(ctx context.Context) (done func()) {
	done = func() {}
	if !p.Live.Present() {
		return done
	}
	timer := time.NewTimer(turnFor)
	defer timer.Stop()
	select {
	case p.turns <- struct{}{}:
		done = func() { <-p.turns }
	case <-timer.C:
		return done
	case <-ctx.Done():
		return done
	}
	for idle := p.Live.Idle(); idle != nil; idle = p.Live.Idle() {
		select {
		case <-idle:
		case <-timer.C:
			return done
		case <-ctx.Done():
			return done
		}
	}
	return done
}
