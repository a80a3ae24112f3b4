package fhir

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"sync"
)

// ErrNoLoan is returned for a request of a job whose client has lent no credentials that hold, until it comes with others.
var ErrNoLoan = fmt.Errorf("%w: none of its client", ErrCredentials)

// Loans are credentials of clients, by the jobs that are read with them. They are in memory only, and gone with the process.
type Loans struct {
	// own are for requests that belong to no job.
	own Credentials

	mu   sync.Mutex
	jobs map[string]loan
}

// loan is what one client has sent last.
type loan struct {
	header http.Header
	// refused tells that the upstream has answered it with 401.
	refused bool
}

// NewLoans returns an empty set; own are for requests that belong to no job, nil for none.
func NewLoans(own Credentials) *Loans {
	if own == nil {
		own = Static{}
	}
	return &Loans{own: own, jobs: map[string]loan{}}
}

// Lend takes the headers of the client to which a job belongs. Only who has made sure of that may call it.
func (l *Loans) Lend(job string, header http.Header) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.jobs[job]; !ok || !reflect.DeepEqual(known.header, header) {
		l.jobs[job] = loan{header: header.Clone()}
	}
}

// Forget removes what was lent to a job.
func (l *Loans) Forget(job string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.jobs, job)
}

// jobKey marks the context of a job.
type jobKey struct{}

// OfJob returns the context for the requests of a job.
func OfJob(ctx context.Context, job string) context.Context {
	return context.WithValue(ctx, jobKey{}, job)
}

// Header returns what the client of the context's job has lent.
func (l *Loans) Header(ctx context.Context) (http.Header, error) {
	job, ok := ctx.Value(jobKey{}).(string)
	if !ok {
		return l.own.Header(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lent, ok := l.jobs[job]
	if !ok || lent.refused {
		return nil, ErrNoLoan
	}
	return lent.header, nil
}

// Refused marks the loan, if it is still that one.
func (l *Loans) Refused(ctx context.Context, header http.Header, before int) bool {
	job, ok := ctx.Value(jobKey{}).(string)
	if !ok {
		return l.own.Refused(ctx, header, before)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if lent, ok := l.jobs[job]; ok && len(header) > 0 && reflect.DeepEqual(lent.header, header) {
		lent.refused = true
		l.jobs[job] = lent
	}
	return len(header) > 0 // who came without any will come without any again
}
