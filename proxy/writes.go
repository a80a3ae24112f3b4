package proxy

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Writes knows the writes that pass through the proxy, for an operator who says that all writers do (setting
// writes_pass_here). An export then waits for those that began before its transaction time, instead of a fixed time.
// Its methods may be called from any goroutine.
type Writes struct {
	mu   sync.Mutex
	open map[*write]struct{}
	// unclear are the writes whose outcome nobody here knows: the server may still be at work on them.
	unclear []write
	// changed is closed at the next end of a write.
	changed chan struct{}
}

// write is one write that is under way.
type write struct {
	began, ended time.Time
	// answered tells that the server gave a final answer, by which it shows what it wrote.
	answered bool
}

// longestSettle is the longest pause that can be configured.
const longestSettle = time.Hour

// NewWrites returns the knowledge of a process that starts now: what was written before it is unclear.
func NewWrites() *Writes {
	return &Writes{open: map[*write]struct{}{}, unclear: []write{{ended: time.Now()}}, changed: make(chan struct{})}
}

// Wait returns when all writes that began before a moment are answered, and settle has passed since the end of those that
// were not: the client left, the answer was cut, it was a 202 or a 504, or it began before this process. It fails with the
// cause with which ctx ended.
func (w *Writes) Wait(ctx context.Context, before time.Time, settle time.Duration) error {
	for {
		pending, until, changed := w.pending(before, settle)
		wait := time.Until(until)
		if !pending && wait <= 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		if pending {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (w *Writes) pending(before time.Time, settle time.Duration) (pending bool, until time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, unclear := range w.unclear {
		if settled := unclear.ended.Add(settle); unclear.began.Before(before) && settled.After(until) {
			until = settled
		}
	}
	for open := range w.open {
		pending = pending || open.began.Before(before)
	}
	return pending, until, w.changed
}

func (w *Writes) begin() *write {
	open := &write{began: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[open] = struct{}{}
	return open
}

// end takes a write off the list. whole tells that its answer went through to its end.
func (w *Writes) end(open *write, whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, open)
	if !whole || !open.answered {
		open.ended = time.Now()
		w.unclear = slices.DeleteFunc(append(w.unclear, *open), func(u write) bool { return time.Since(u.ended) > longestSettle })
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// Own notes a write that the sidecar itself sends; send tells whether the server gave a final answer.
func (w *Writes) Own(send func() (answered bool)) {
	open := w.begin()
	answered := false
	defer func() {
		open.answered = answered
		w.end(open, answered)
	}()
	answered = send()
}

// isWrite tells whether a request may change data. Operations may; a search by POST does not.
func isWrite(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return false
	case http.MethodPost:
		return !strings.HasSuffix(strings.TrimSuffix(r.URL.Path, "/"), "/_search")
	}
	return true
}
