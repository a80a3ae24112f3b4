package exporter

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"sidecar/exporter/fhir"
)

const (
	// firstWorkers is how many requests are under way at once before anything is known of the server.
	firstWorkers = 2
	// cleanRun is how many requests in a row must succeed before one more is allowed.
	cleanRun = 30
	// latencyWindow is how many first-byte times make the baseline, latencyLeast how many it takes to have one.
	latencyWindow = 101
	latencyLeast  = 20
	// slowRun is how many answers in a row must be slower than slowFactor times the baseline to count as overload.
	slowRun    = 8
	slowFactor = 3
	// latencyFloor is the least baseline: below it a slow answer is noise.
	latencyFloor = 50 * time.Millisecond
)

// limiter is the budget of all jobs for requests under way at once: it grows by one with each run of clean answers, and is
// halved by each sign of overload. Beside users it is what polite leaves of it.
type limiter struct {
	most  int
	hours *Hours // nil for always
	// changed is told the number of requests allowed, waits the moment at which the hours begin. Both may be nil.
	changed func(allowed float64)
	waits   func(until time.Time)

	mu      sync.Mutex
	polite  *polite // nil where nobody knows of users
	allowed int
	busy    int
	clean   int
	halved  time.Time     // when overload was seen last
	freed   chan struct{} // closed when a request ends
	opens   time.Time     // the opening that was announced last
	held    time.Time     // until when the server wants no request
	// latencies are the newest first-byte times, slow how many of them in a row were slow.
	latencies []time.Duration
	slow      int
}

func newLimiter(most int, hours *Hours) *limiter {
	return &limiter{most: most, hours: hours, allowed: min(firstWorkers, most), freed: make(chan struct{})}
}

// ticket is the right to one request. It must be given back by release.
type ticket struct {
	began  time.Time
	waited waited
}

// waited is for what a right was waited that no budget of time should count: for the hours or not, and how long for users.
type waited struct {
	hours bool
	users time.Duration
}

// acquire waits for the right to one request.
func (l *limiter) acquire(ctx context.Context) (*ticket, error) {
	var waited waited
	for {
		hours, err := l.awaitHours(ctx)
		if err != nil {
			return nil, err
		}
		waited.hours = waited.hours || hours
		if err := l.awaitHold(ctx); err != nil {
			return nil, err
		}
		t, until := l.take()
		if t != nil {
			t.waited = waited
			return t, nil
		}
		began := time.Now()
		if err := until.await(ctx); err != nil {
			return nil, err
		}
		if until.wait > 0 {
			waited.users += time.Since(began)
		}
	}
}

// try takes a right that is free at once, or returns nil.
func (l *limiter) try() *ticket {
	if l.hours.until(time.Now()) > 0 || l.holds() > 0 {
		return nil
	}
	t, _ := l.take()
	return t
}

// until is what has to happen before there may be room: a request of ours ends, a time passes if users are given one, or no user waits.
type until struct {
	freed, idle <-chan struct{}
	wait        time.Duration
}

// await returns when one of these has happened, or after a second: users may have left.
func (u until) await(ctx context.Context) error {
	var over <-chan time.Time
	if u.wait > 0 {
		timer := time.NewTimer(min(u.wait, time.Second))
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-u.freed:
	case <-u.idle:
	case <-over:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// hold lets no request begin for a while, because the server asked one of them to wait: it means all.
func (l *limiter) hold(wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until := time.Now().Add(wait); until.After(l.held) {
		l.held = until
	}
}

// holds is how long the server still wants no request.
func (l *limiter) holds() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.held)
}

// awaitHold waits until the server wants requests again, each caller a little longer than asked: not all come at once.
func (l *limiter) awaitHold(ctx context.Context) error {
	for wait := l.holds(); wait > 0; wait = l.holds() {
		if err := sleep(ctx, jittered(wait)); err != nil {
			return err
		}
	}
	return nil
}

// take takes a right if there is room, else tells what to wait for.
func (l *limiter) take() (*ticket, until) {
	l.mu.Lock()
	defer l.mu.Unlock()
	room, until := l.allowed, until{freed: l.freed}
	if l.polite != nil {
		before := l.budget()
		room, until.wait, until.idle = l.polite.room(l.busy, l.allowed)
		if l.changed != nil && l.budget() != before {
			l.changed(l.budget())
		}
	}
	if l.busy >= room {
		return nil, until
	}
	l.busy++
	if l.polite != nil {
		l.polite.began()
	}
	return &ticket{began: time.Now()}, until
}

// budget is how many requests exports may have under way on average.
func (l *limiter) budget() float64 {
	if l.polite != nil && l.polite.users {
		return min(l.polite.share, float64(l.allowed))
	}
	return float64(l.allowed)
}

// pageBytes is how large a page of a type may be beside users, 0 while there are none.
func (l *limiter) pageBytes(typ string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.polite == nil || !l.polite.users {
		return 0
	}
	return l.polite.page(typ).next()
}

// paged notes how long a page of a type took from the question to its last byte.
func (l *limiter) paged(typ string, bytes int64, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.polite != nil && l.polite.users {
		l.polite.page(typ).add(bytes, took)
	}
}

// idled notes that the server only waited for so long of a request that is under way.
func (l *limiter) idled(wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.polite != nil {
		l.polite.idle += wait
	}
}

// release gives a right back, with how the request ended. It may be called on a nil ticket.
func (l *limiter) release(t *ticket, err error) {
	if t == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	if l.polite != nil {
		l.polite.ended(t.began, l.busy)
	}
	close(l.freed)
	l.freed = make(chan struct{})
	switch {
	case err == nil:
		if l.clean++; l.clean >= cleanRun && l.allowed < l.most {
			l.clean = 0
			l.set(l.allowed + 1)
		}
	case overloaded(err):
		l.halve(t.began)
	}
}

// overloaded tells whether an error says that the server has too much to do.
func overloaded(err error) bool {
	switch fhir.StatusOf(err) {
	case 429, 502, 503:
		return true
	}
	return fhir.TimedOut(err) || fhir.Broken(err)
}

// halve reacts to a sign of overload from a request that began at began. What was under way when the number was halved
// already tells nothing new.
func (l *limiter) halve(began time.Time) {
	l.clean = 0
	if !began.After(l.halved) && !l.halved.IsZero() {
		return
	}
	l.halved = time.Now()
	l.set(max(1, l.allowed/2))
}

func (l *limiter) set(allowed int) {
	l.allowed = allowed
	if l.changed != nil {
		l.changed(l.budget())
	}
}

// answered takes the first-byte time of a page into account: a run of answers much slower than usual is overload that the
// server does not speak of.
func (l *limiter) answered(began time.Time, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.latencies) >= latencyLeast {
		sorted := slices.Sorted(slices.Values(l.latencies))
		if took > slowFactor*max(latencyFloor, sorted[len(sorted)/2]) {
			l.slow++
		} else {
			l.slow = 0
		}
		if l.slow >= slowRun {
			l.slow = 0
			l.halve(began)
		}
	}
	l.latencies = append(l.latencies, took)
	if len(l.latencies) > latencyWindow {
		l.latencies = l.latencies[1:]
	}
}

// awaitHours waits until exports may ask, and tells whether it had to.
func (l *limiter) awaitHours(ctx context.Context) (waited bool, err error) {
	for {
		now := time.Now()
		wait := l.hours.until(now)
		if wait <= 0 {
			return waited, nil
		}
		waited = true
		l.announce(now.Add(wait))
		if err := sleep(ctx, min(wait, longestNap)); err != nil {
			return waited, err
		}
	}
}

// longestNap is how long the hours are waited for without a look at the clock, which may have been set meanwhile.
const longestNap = time.Minute

func (l *limiter) announce(opens time.Time) {
	l.mu.Lock()
	known := l.opens.Equal(opens)
	l.opens = opens
	l.mu.Unlock()
	if !known && l.waits != nil {
		l.waits(opens)
	}
}

// Hours is a part of each day, by the clock of the process's time zone. It may go over midnight.
type Hours struct{ from, to time.Duration }

// ParseHours reads "22:00-06:00". Empty means always, which is nil.
func ParseHours(s string) (*Hours, error) {
	if s == "" {
		return nil, nil
	}
	const form = "15:04"
	if len(s) != len("22:00-06:00") || s[len(form)] != '-' {
		return nil, errHours
	}
	from, errFrom := time.Parse(form, s[:len(form)])
	to, errTo := time.Parse(form, s[len(form)+1:])
	if errFrom != nil || errTo != nil || from.Equal(to) {
		return nil, errHours
	}
	return &Hours{sinceMidnight(from), sinceMidnight(to)}, nil
}

var errHours = errors.New("not a part of the day such as 22:00-06:00")

func sinceMidnight(t time.Time) time.Duration {
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
}

// until is how long it takes until the hours begin, 0 within them. It may be called on nil.
func (h *Hours) until(now time.Time) time.Duration {
	if h == nil {
		return 0
	}
	clock := sinceMidnight(now)
	within := clock >= h.from && clock < h.to
	if h.from > h.to {
		within = clock >= h.from || clock < h.to
	}
	if within {
		return 0
	}
	opens := time.Date(now.Year(), now.Month(), now.Day(), 0, int(h.from.Minutes()), 0, 0, now.Location())
	if !opens.After(now) {
		opens = time.Date(now.Year(), now.Month(), now.Day()+1, 0, int(h.from.Minutes()), 0, 0, now.Location())
	}
	return opens.Sub(now)
}
