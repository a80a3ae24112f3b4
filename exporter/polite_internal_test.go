package exporter

import (
	"math"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// felt are users who wait longer the more exports ask.
type felt struct {
	here bool
	idle chan struct{} // nil: none waits
	// slowdown is what a share makes of their waits; nil means that nothing is known.
	slowdown func(share float64) float64
	share    func() float64
	beside   atomic.Int64 // until when users are beside exports, in nanoseconds of the Unix clock
}

func (f *felt) Present() bool      { return f.here }
func (f *felt) Beside(u time.Time) { f.beside.Store(u.UnixNano()) }
func (f *felt) Forget(bool)        {}

// Idle is the channel until it is closed.
func (f *felt) Idle() <-chan struct{} {
	select {
	case <-f.idle:
		return nil
	default:
		return f.idle
	}
}

// besideNow tells whether a request that begins now does so beside exports.
func (f *felt) besideNow() bool { return f.beside.Load() > time.Now().UnixNano() }

func (f *felt) Slowdown() (float64, float64) {
	if f.slowdown == nil {
		return 1, math.Inf(1)
	}
	return f.slowdown(f.share()), 0.1
}

// paced makes requests of a second, as many at once as it may, and returns the seconds of requests for each second.
func paced(l *limiter, span time.Duration) float64 {
	const took = time.Second
	began, n := time.Now(), 0
	for until := began.Add(span); time.Now().Before(until); {
		if held := l.try(); held != nil {
			n++
			go func() {
				time.Sleep(took) // in a bubble
				l.release(held, nil)
			}()
			continue
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(2 * took)
	return float64(n) * took.Seconds() / span.Seconds()
}

// Ensure exports ask as much as users do not feel, and a twentieth whatever they feel: what they do not feel is all but the pauses.
func TestPaceFollowsUsers(t *testing.T) {
	for name, test := range map[string]struct {
		here        bool
		slowdown    func(share float64) float64
		least, most float64
	}{
		"no users":         {false, nil, 7.9, 8.1},
		"nothing is known": {true, nil, 0.3, leastPart * 8},
		"unhurt":           {true, func(float64) float64 { return 1 }, 6, 8},
		"hurt at once":     {true, func(float64) float64 { return 3 }, leastPart * 8 * 0.7, leastPart * 8 * 1.01},
		"hurt from two on": {true, func(share float64) float64 { return 1 + 0.1*share/2 }, 0.9, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(8, nil)
				users := &felt{here: test.here, slowdown: test.slowdown, share: l.budget}
				l.allowed, l.polite = 8, newPolite(users, DefaultLiveSlowdown)
				paced(l, 10*time.Minute)
				if got := paced(l, 10*time.Minute); got < test.least || got > test.most {
					t.Errorf("%.2f requests at once on average, want %.2f to %.2f", got, test.least, test.most)
				}
			})
		})
	}
}

// Ensure exports pause for a second every few, and users who ask then count as alone; also those who come when the export has ended.
func TestExportsPauseToSeeUsersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2, nil)
		users := &felt{here: true}
		l.polite = newPolite(users, DefaultLiveSlowdown)
		counted := make(chan int)
		go func() {
			alone := 0
			for range 1000 {
				time.Sleep(100 * time.Millisecond) // in a bubble
				if !users.besideNow() {
					alone++
				}
			}
			counted <- alone
		}()
		paced(l, 100*time.Second)
		if alone := <-counted; alone < 100 || alone > 400 {
			t.Errorf("%d of 1000 moments alone, want one of five or a few more", alone)
		}
		time.Sleep(10 * time.Second)
		if users.besideNow() {
			t.Error("users are beside an export that has ended")
		}
	})
}

// Ensure what was learned is kept while users are away for a moment, and not for long.
func TestShareIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		users := &felt{here: true, slowdown: func(float64) float64 { return 1 }, share: l.budget}
		l.allowed, l.polite = 8, newPolite(users, DefaultLiveSlowdown)
		paced(l, 10*time.Minute)
		for _, test := range []struct {
			away time.Duration
			want float64
		}{{time.Minute, 8}, {2 * rememberFor, firstShare}} {
			users.here = false
			l.release(l.try(), nil)
			time.Sleep(test.away)
			users.here = true
			l.release(l.try(), nil)
			if got := l.budget(); math.Abs(got-test.want) > 1 {
				t.Errorf("%g after %s without users, want %g", got, test.away, test.want)
			}
		}
	})
}

// Ensure a request begins when no user waits, after a while also while one does, and is not later for that on average.
func TestRequestsBeginInIdleMoments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		users := &felt{here: true}
		l.allowed, l.polite = 8, newPolite(users, DefaultLiveSlowdown)
		paced(l, 10*time.Second) // beyond the first pause
		l.polite.ends, l.polite.next = time.Now().Add(time.Hour), time.Time{}
		began := func() time.Duration {
			at := time.Now()
			held, err := l.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(at)
			l.release(held, nil)
			return took
		}
		if took := began(); took != 0 {
			t.Errorf("no user waits: a request begins after %s", took)
		}
		users.idle = make(chan struct{})
		if took := began(); took != idleFor {
			t.Errorf("a user waits for long: a request begins after %s, want %s", took, idleFor)
		}
		time.AfterFunc(idleFor/4, func() { close(users.idle) })
		if took := began(); took != idleFor/4 {
			t.Errorf("a user waits for %s: a request begins after %s", idleFor/4, took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		users := &felt{here: true, slowdown: func(float64) float64 { return 3 }, share: l.budget}
		l.allowed, l.polite = 8, newPolite(users, DefaultLiveSlowdown)
		paced(l, time.Minute)
		pace := paced(l, 10*time.Minute)
		users.idle = make(chan struct{}) // and never is
		if crowded := paced(l, 10*time.Minute); crowded < 0.9*pace {
			t.Errorf("%.3f requests at once where a user waits at any moment, %.3f where none does", crowded, pace)
		}
	})
}

// leastShare is a limiter of one request at once whose users have suffered until it had the least share.
func leastShare() *limiter {
	l := newLimiter(1, nil)
	l.polite = newPolite(&felt{here: true, slowdown: func(float64) float64 { return 3 }, share: l.budget}, DefaultLiveSlowdown)
	paced(l, 10*time.Minute)
	return l
}

// Ensure no pause is owed for the time in which the server only waited, and that it is told of one request alone.
func TestIdleServerIsNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leastShare()
		l.polite.ends, l.polite.asks = time.Now().Add(time.Hour), true
		pause := func(took, idle time.Duration) time.Duration {
			held, err := l.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(took) // in a bubble
			l.idled(idle)
			l.release(held, nil)
			ended := time.Now()
			if held, err = l.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer l.release(held, nil)
			return time.Since(ended)
		}
		worked, idled, again := pause(time.Second, 0), pause(time.Second, 900*time.Millisecond), pause(time.Second, 0)
		if want := time.Duration(float64(time.Second)/l.polite.share) - time.Second; worked < want-idleFor || worked > want {
			t.Errorf("behind a second of work a pause of %s, want about %s", worked, want)
		}
		if most := time.Duration(float64(100*time.Millisecond) / l.polite.share); idled > most {
			t.Errorf("behind a tenth of a second of work a pause of %s, want at most %s", idled, most)
		}
		if again < worked-idleFor {
			t.Errorf("behind the next second of work a pause of %s, want %s", again, worked)
		}
	})
}

// Ensure the pauses for users end, behind requests that were never answered too, and that they do not make a job give up.
func TestPausesForUsersAreNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leastShare()
		const timeout, timeouts = 2 * time.Minute, 6
		p, began, asked := &pace{limiter: l, giveUp: 15 * time.Minute}, time.Now(), 0
		err := p.do(t.Context(), func() error {
			if asked++; asked > timeouts {
				return nil
			}
			time.Sleep(timeout) // in a bubble
			return os.ErrDeadlineExceeded
		})
		if err != nil {
			t.Errorf("given up after %d requests that were not answered, in %s: %v", asked, time.Since(began), err)
		}
		if took, most := time.Since(began), timeouts*(timeout+longestPause+maxPause); took < p.giveUp || took > most {
			t.Errorf("%d timeouts and the answer took %s, want more than %s and at most %s", timeouts, took, p.giveUp, most)
		}
	})
}
