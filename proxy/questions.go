package proxy

import (
	"context"
	"fmt"
	"runtime/debug"

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

// guarded makes an error of a panic. In a goroutine of its own net/http does not catch it, and it would end the process with all
// its jobs. What was thrown is told by its type, since it may hold anything.
func guarded(do func() error) (err error) {
	defer func() {
		if thrown := recover(); thrown != nil {
			err = fmt.Errorf("panic of %T: %s", thrown, debug.Stack())
		}
	}()
	return do()
}
