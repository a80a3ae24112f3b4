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

// Live measures how long users wait for the server: from the moment at which a request is sent on to the first byte of its
// answer, apart for requests that begin while exports ask the server and for those that do not. It has a minute or so in mind.
// Its methods may be called from any goroutine; a request costs a few atomic additions.
type Live struct {
	inFlight atomic.Int64
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

// wait is that of one request.
type wait struct {
	began  time.Time
	kind   kind
	beside bool
	open   bool
}

// NewLive returns the knowledge of a process that has seen no user yet.
func NewLive() *Live { return &Live{} }

// Present tells whether there are users: one waits now, or did a few seconds ago.
func (l *Live) Present() bool {
	return l.inFlight.Load() > 0 || time.Since(time.Unix(0, l.last.Load())) < liveFor
}

// Idle returns a channel that is closed when the server has begun to answer all, nil if it has.
func (l *Live) Idle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	l.wanted.Store(true) // before the look, so that the last one to be answered sees it
	if l.inFlight.Load() == 0 {
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
		Namespace: "sidecar", Name: "live_requests", Help: "Requests of users that the FHIR server has not begun to answer.",
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

// begin notes that a request is sent on now.
func (l *Live) begin(r *http.Request, base string, now time.Time) wait {
	l.inFlight.Add(1)
	l.last.Store(now.UnixNano())
	return wait{began: now, kind: kindOf(r.Method, r.URL.Path, r.URL.RawQuery, base), beside: now.UnixNano() < l.beside.Load(), open: true}
}

// answered notes the beginning of an answer that took so long. What failed because the server has too much to do, or does not answer, is as
// bad as the longest wait; what was refused says nothing.
func (l *Live) answered(w *wait, status int, took time.Duration) {
	if !w.open {
		return
	}
	l.end(w)
	cell := cellOf(took)
	switch {
	case status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
		cell = cells - 1
	case status >= http.StatusBadRequest && status != statusClientLeft: // who left has waited for so long at least
		return
	}
	side := 0
	if w.beside {
		side = 1
	}
	l.waits[side][w.kind][cell].Add(weight)
	now := w.began.Add(took)
	if at := l.ages.Load(); now.UnixNano() > at && l.ages.CompareAndSwap(at, now.Add(ageEvery).UnixNano()) {
		l.age()
	}
}

// end notes that the server is not waited for any more.
func (l *Live) end(w *wait) {
	if w.open {
		w.open = false
		if l.inFlight.Add(-1) == 0 && l.wanted.Load() {
			l.mu.Lock()
			l.wake()
			l.mu.Unlock()
		}
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
