package proxy

import (
	"context"

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
