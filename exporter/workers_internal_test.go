package exporter

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir"
)

// spend makes n requests one after another that end with err.
func spend(t *testing.T, l *limiter, n int, err error) {
	t.Helper()
	for range n {
		time.Sleep(time.Millisecond) // in a bubble
		held, acquired := l.acquire(t.Context())
		if acquired != nil {
			t.Fatal(acquired)
		}
		l.release(held, err)
	}
}

// Ensure the number of workers starts at two, grows by one per clean run up to the ceiling, and is halved by overload.
func TestWorkersFollowTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		seen := 0.0
		l.changed = func(allowed float64) { seen = allowed }
		if l.allowed != firstWorkers {
			t.Fatalf("%d at first, want %d", l.allowed, firstWorkers)
		}
		spend(t, l, cleanRun-1, nil)
		if seen != 0 {
			t.Errorf("%g before a clean run is over", seen)
		}
		spend(t, l, 1, nil)
		if seen != 3 {
			t.Errorf("%g after a clean run, want 3", seen)
		}
		spend(t, l, 100*cleanRun, nil)
		if seen != 8 {
			t.Errorf("%g in the end, want the ceiling 8", seen)
		}
	})
	for _, test := range []struct {
		err  error
		want int
	}{
		{&fhir.ResponseError{StatusCode: 500}, 8},
		{&fhir.ResponseError{StatusCode: 404}, 8},
		{context.Canceled, 8},
		{&fhir.ResponseError{StatusCode: 429}, 4},
		{&fhir.ResponseError{StatusCode: 502}, 4},
		{&fhir.ResponseError{StatusCode: 503}, 4},
		{&fhir.ResponseError{StatusCode: 504}, 4},
		{context.DeadlineExceeded, 4},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(8, nil)
			spend(t, l, 10*cleanRun, nil)
			spend(t, l, 1, test.err)
			if l.allowed != test.want {
				t.Errorf("%d after %v, want %d", l.allowed, test.err, test.want)
			}
			if spend(t, l, 9, test.err); test.want < 8 && l.allowed != 1 {
				t.Errorf("%d after ten times %v, want 1", l.allowed, test.err)
			}
		})
	}
}

// Ensure a request that panics gives its right back while others go on.
func TestPanicLosesNoRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pace{giveUp: time.Minute, limiter: newLimiter(1, nil)}
		err := guarded(func() error { return p.do(t.Context(), func() error { panic("a test") }) })
		var fault *panicError
		if !errors.As(err, &fault) {
			t.Fatalf("got %v, want the panic", err)
		}
		held := p.limiter.try()
		if held == nil {
			t.Fatal("the right is lost")
		}
		p.limiter.release(held, nil)
	})
}

// Ensure requests that were under way together halve the number once.
func TestOneBurstOfRefusalsHalvesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		spend(t, l, 10*cleanRun, nil)
		var held []*ticket
		for range 8 {
			held = append(held, l.try())
		}
		if l.try() != nil {
			t.Error("a ninth request is let through")
		}
		time.Sleep(time.Second)
		for _, one := range held {
			l.release(one, &fhir.ResponseError{StatusCode: 429})
		}
		if l.allowed != 4 {
			t.Errorf("%d, want 4", l.allowed)
		}
	})
}

// Ensure a run of slow answers is taken for overload, and one slow answer is not.
func TestRisingLatencyHalves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(8, nil)
		spend(t, l, 10*cleanRun, nil)
		answer := func(n int, took time.Duration) {
			for range n {
				time.Sleep(took)
				l.answered(time.Now().Add(-took), took)
			}
		}
		answer(50, 200*time.Millisecond)
		answer(slowRun-1, time.Second)
		answer(1, 200*time.Millisecond)
		if l.allowed != 8 {
			t.Errorf("%d after a few slow answers, want 8", l.allowed)
		}
		answer(slowRun, time.Second)
		if l.allowed != 4 {
			t.Errorf("%d after a run of slow answers, want 4", l.allowed)
		}
		answer(500, time.Second) // that is what the server is like now
		before := l.allowed
		answer(200, time.Second)
		if l.allowed != before {
			t.Errorf("%d, then %d: answers as usual count as slow", before, l.allowed)
		}
	})
}

// Ensure who waits for a right gets it when one is given back, and leaves when the context ends.
func TestWaitingForARight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, nil)
		held := l.try()
		got := make(chan *ticket)
		go func() {
			one, _ := l.acquire(t.Context())
			got <- one
		}()
		ctx, cancel := context.WithCancelCause(t.Context())
		left := make(chan error)
		go func() {
			_, err := l.acquire(ctx)
			left <- err
		}()
		synctest.Wait()
		cancel(ErrCancelled)
		if err := <-left; !errors.Is(err, ErrCancelled) {
			t.Errorf("left with %v", err)
		}
		l.release(held, nil)
		if <-got == nil {
			t.Error("no right")
		}
	})
}

// Ensure hours are read and kept, over midnight as well.
func TestHours(t *testing.T) {
	for _, bad := range []string{"22-06", "22:00-22:00", "24:00-06:00", "22:00 06:00", "22:00-6:00", "always"} {
		if _, err := ParseHours(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, test := range []struct {
		hours, now string
		want       time.Duration
	}{
		{"22:00-06:00", "21:30", 30 * time.Minute},
		{"22:00-06:00", "22:00", 0},
		{"22:00-06:00", "03:00", 0},
		{"22:00-06:00", "06:00", 16 * time.Hour},
		{"01:00-05:00", "00:30", 30 * time.Minute},
		{"01:00-05:00", "04:59", 0},
		{"01:00-05:00", "05:00", 20 * time.Hour},
		{"", "12:00", 0},
	} {
		hours, err := ParseHours(test.hours)
		if err != nil {
			t.Fatal(err)
		}
		clock, err := time.Parse("15:04", test.now)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2024, 5, 6, clock.Hour(), clock.Minute(), 0, 0, time.UTC)
		if got := hours.until(now); got != test.want {
			t.Errorf("%s at %s: %s, want %s", test.hours, test.now, got, test.want)
		}
	}
}
