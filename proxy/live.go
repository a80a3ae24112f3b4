package proxy

import (
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Live measures how long users wait for the server: from the moment at which all of a request has come, and can be sent on, to the
// first byte of its answer, apart for requests that begin while exports ask the server and for those that do not. It has a minute or
// so in mind. Its methods may be called from any goroutine; a request costs a few atomic additions.
type Live struct {
	inFlight atomic.Int64
	// crowds are those of the requests that began last, the newest first.
	crowds [2]atomic.Pointer[crowd]
	// last is when a request began last, beside until when one that begins counts as one beside exports, ages when the waits
	// count less: nanoseconds of the Unix clock.
	last, beside, ages atomic.Int64
	waits              [2]waits // without exports, and beside them

	wanted atomic.Bool // somebody waits for idle
	mu     sync.Mutex
	idle   chan struct{}
}

const (
	// liveFor is how long after a request of a user there still are users.
	liveFor = 10 * time.Second
	// crowdFor is for how long requests join the same crowd. The latest two count: who has waited for a minute or so for the first byte
	// is no user, but a stream of events or a request that was forgotten, and must not hold exports back for as long as it lasts.
	crowdFor = 45 * time.Second
	// ageEvery is how often the waits lose a quarter of their weight, ageAbove the number of requests below which they keep it: of
	// few users the latest ones are remembered for longer.
	ageEvery, ageAbove = 10 * time.Second, 50
	// weight is that of a new wait, so that a quarter of it is a number.
	weight = 1 << 16
	// perOctave is how many cells a factor of two has, cells how many there are: from 2^shortest nanoseconds, which is an eighth of a
	// millisecond, to two minutes and a quarter.
	perOctave, shortest, cells = 8, 17, 160
	// slow is the part of the requests that are compared, but for the slowest of all. A user notices the slow ones; a fifth are enough to
	// tell from chance. A twentieth are late once in a while because the server pauses, as virtual machines do.
	slow, slowest = 0.2, 0.05
	// errorOfOne is about the standard error of the logarithm of what a sample of one request would say of the slow ones; that of
	// n is the root of n times smaller. An exponential distribution has 1.4; requests that wait for each other are not independent.
	errorOfOne = 2
)

// kind are requests that cost a server about the same.
type kind uint8

const (
	kindRead kind = iota
	kindSearch
	kindOperation
	kindHistory
	kindBatch
	kindWrite
	kinds
)

// histogram counts waits by their length.
type histogram [cells]atomic.Uint64

// waits are those of each kind.
type waits [kinds]histogram

// crowd are requests that began to wait at about the same time.
type crowd struct {
	since   int64 // nanoseconds of the Unix clock
	waiting atomic.Int64
}

// wait is that of one request for the server. While it is unsent the server is not waited for, but the client for its body.
type wait struct {
	phase atomic.Uint32
	kind  kind
	// What follows is known when it is open.
	began  time.Time
	beside bool
	crowd  *crowd
}

// phases of a wait.
const (
	unsent = iota
	open
	over
)

// NewLive returns the knowledge of a process that has seen no user yet.
func NewLive() *Live { return &Live{} }

// Present tells whether there are users: one waits now, or did a few seconds ago.
func (l *Live) Present() bool {
	now := time.Now().UnixNano()
	return l.waiting(now) > 0 || now-l.last.Load() < int64(liveFor)
}

// waiting is how many users wait.
func (l *Live) waiting(now int64) (n int64) {
	for i := range l.crowds {
		if c := l.crowds[i].Load(); c != nil && now-c.since < int64(2*crowdFor) {
			n += c.waiting.Load()
		}
	}
	return n
}

// join returns the crowd of requests that begin now.
func (l *Live) join(now int64) *crowd {
	fresh := func(c *crowd) bool { return c != nil && now-c.since < int64(crowdFor) }
	newest := l.crowds[0].Load()
	if fresh(newest) {
		return newest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if newest = l.crowds[0].Load(); !fresh(newest) { // nobody was quicker
		l.crowds[1].Store(newest)
		newest = &crowd{since: now}
		l.crowds[0].Store(newest)
	}
	return newest
}

// Idle returns a channel that is closed when the server has begun to answer all users, nil if it has.
func (l *Live) Idle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	l.wanted.Store(true) // before the look, so that the last one to be answered sees it
	if l.waiting(time.Now().UnixNano()) == 0 {
		l.wake()
		return nil
	}
	return l.idle
}

// wake closes the channel that was asked for. It is called with the mutex held.
func (l *Live) wake() {
	if l.wanted.Swap(false) {
		close(l.idle)
		l.idle = nil
	}
}

// InFlight is the number of requests that the server has not begun to answer.
func (l *Live) InFlight() int { return int(l.inFlight.Load()) }

// Collectors returns what has to be registered.
func (l *Live) Collectors() []prometheus.Collector {
	return []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "sidecar", Name: "live_requests", Help: "Requests that the FHIR server has got as a whole and has not begun to answer.",
	}, func() float64 { return float64(l.InFlight()) })}
}

// Beside says until when requests that begin do so beside exports. A moment in the past means that exports pause.
func (l *Live) Beside(until time.Time) { l.beside.Store(until.UnixNano()) }

// Forget starts anew with the requests beside exports. With alone those without lose three quarters of their weight as well: a server
// that has become slow by itself is soon no slower than usual.
func (l *Live) Forget(alone bool) {
	l.waits[1].age(1)
	if alone {
		l.waits[0].age(2)
		l.waits[0].age(2)
	}
}

// Slowdown is how many times as long the slow requests beside exports waited as those of the others, in which each
// kind of request is given the part that it has beside exports: another mix of requests is no slowdown. doubt is about the standard
// error of its logarithm; it is infinite when there is nothing to compare.
func (l *Live) Slowdown() (ratio, doubt float64) {
	var alone, beside [cells]float64
	nAlone, nBeside := 0.0, 0.0
	for kind := range kinds {
		without, with := l.waits[0][kind].load(), l.waits[1][kind].load()
		n, m := sum(&without), sum(&with)
		if n < 1 || m == 0 {
			continue
		}
		nAlone, nBeside = nAlone+n, nBeside+m
		for cell := range cells {
			alone[cell] += without[cell] * m / n
			beside[cell] += with[cell]
		}
	}
	if nAlone == 0 {
		return 1, math.Inf(1)
	}
	return math.Exp2((tail(&beside) - tail(&alone)) / perOctave), errorOfOne * math.Sqrt(1/nAlone+1/nBeside)
}

// load reads a histogram, in requests.
func (h *histogram) load() (counts [cells]float64) {
	for cell := range h {
		counts[cell] = float64(h[cell].Load()) / weight
	}
	return counts
}

func sum(counts *[cells]float64) (all float64) {
	for _, n := range counts {
		all += n
	}
	return all
}

// tail is the mean cell of the slow ones: the cells grow by a factor, so that it is a geometric mean.
func tail(counts *[cells]float64) float64 {
	all := sum(counts)
	skip, left, total := all*slowest, all*(slow-slowest), 0.0
	for cell := cells - 1; cell >= 0 && left > 0; cell-- {
		skipped := min(skip, counts[cell])
		n := min(left, counts[cell]-skipped)
		skip, left = skip-skipped, left-n
		total += n * float64(cell)
	}
	return total / (all * (slow - slowest))
}

// begin notes that all of a request is here, so that the server is waited for from now on. The goroutine that reads the body may call
// it at any time, also when the answer has come before.
func (l *Live) begin(w *wait, now time.Time) {
	at := now.UnixNano()
	w.began, w.beside, w.crowd = now, at < l.beside.Load(), l.join(at)
	l.last.Store(at)
	l.inFlight.Add(1)
	w.crowd.waiting.Add(1)
	if !w.phase.CompareAndSwap(unsent, open) {
		l.left(w.crowd)
	}
}

// answered notes the beginning of an answer, and returns how long the server took for it: nothing where it did not await the end of
// the request. What failed because the server has too much to do, or does not answer, is as bad as the longest wait; what was refused
// says nothing.
func (l *Live) answered(w *wait, status int, now time.Time) (took time.Duration) {
	at, side := now.UnixNano(), 0
	was := l.end(w)
	beside := at < l.beside.Load()
	if was == open {
		took, beside = max(now.Sub(w.began), 0), w.beside // the body may have ended since
	}
	cell := cellOf(took)
	switch {
	case was == over:
		return 0
	case status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
		cell = cells - 1
	case was == unsent, status >= http.StatusBadRequest && status != statusClientLeft: // who left has waited for so long at least
		return took
	}
	if beside {
		side = 1
	}
	l.waits[side][w.kind][cell].Add(weight)
	if next := l.ages.Load(); at > next && l.ages.CompareAndSwap(next, at+int64(ageEvery)) {
		l.age()
	}
	return took
}

// end notes that the server is not waited for any more, and returns the phase that has ended.
func (l *Live) end(w *wait) (was uint32) {
	if was = w.phase.Swap(over); was == open {
		l.left(w.crowd)
	}
	return was
}

// left notes that one of a crowd does not wait any more.
func (l *Live) left(c *crowd) {
	l.inFlight.Add(-1)
	if c.waiting.Add(-1) == 0 && l.wanted.Load() && l.waiting(time.Now().UnixNano()) == 0 {
		l.mu.Lock()
		l.wake()
		l.mu.Unlock()
	}
}

// age takes a quarter off the weight of waits that are not few.
func (l *Live) age() {
	for side := range l.waits {
		all := 0.0
		for kind := range kinds {
			counts := l.waits[side][kind].load()
			all += sum(&counts)
		}
		if all > ageAbove {
			l.waits[side].age(4)
		}
	}
}

// age takes one part of so many off.
func (w *waits) age(parts uint64) {
	for kind := range kinds {
		for cell := range cells {
			counter := &w[kind][cell]
			counter.Add(-(counter.Load() / parts))
		}
	}
}

// cellOf is the cell of a wait, by its logarithm.
func cellOf(took time.Duration) int {
	octaves := math.Log2(float64(max(took, 1<<shortest))) - shortest
	return min(int(octaves*perOctave), cells-1)
}

// kindOf tells the kind of a request by its method and the form of its path.
func kindOf(method, path, query, base string) kind {
	below := strings.Trim(strings.TrimPrefix(path, base), "/")
	switch {
	case strings.Contains(below, "$"):
		return kindOperation
	case below == "" && method == http.MethodPost:
		return kindBatch
	case strings.HasSuffix(below, "_search"):
		return kindSearch
	case method == http.MethodPost, method == http.MethodPut, method == http.MethodPatch, method == http.MethodDelete:
		return kindWrite
	case strings.HasSuffix(below, "_history"):
		return kindHistory
	case below == "metadata", strings.Contains(below, "/") && query == "":
		return kindRead
	}
	return kindSearch
}
