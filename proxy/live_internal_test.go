package proxy

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// Ensure who waits for a moment without users is told of it, by the last answer or at once.
func TestIdle(t *testing.T) {
	l, one, two := NewLive(), new(wait), new(wait)
	if l.Idle() != nil {
		t.Error("nobody has asked, yet somebody waits")
	}
	l.begin(one, time.Now())
	l.begin(two, time.Now())
	idle := l.Idle()
	l.answered(one, http.StatusOK, time.Now())
	select {
	case <-idle:
		t.Error("idle while one waits")
	default:
	}
	l.end(two)
	<-idle
	if l.Idle() != nil {
		t.Error("all are answered, yet somebody waits")
	}
}

// Ensure a request that the server does not answer is no user for ever, and hides none.
func TestLongWaitIsNoUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, long, short := NewLive(), new(wait), new(wait)
		l.begin(long, time.Now())
		time.Sleep(crowdFor) // in a bubble
		if !l.Present() || l.Idle() == nil {
			t.Error("a user is forgotten")
		}
		time.Sleep(crowdFor)
		if l.Present() || l.Idle() != nil || l.InFlight() != 1 {
			t.Errorf("present: %t, %d requests", l.Present(), l.InFlight())
		}
		l.begin(short, time.Now())
		idle := l.Idle()
		if !l.Present() || idle == nil {
			t.Error("a user is hidden by one who has waited for long")
		}
		l.answered(short, http.StatusOK, time.Now())
		<-idle
		if l.end(long); l.InFlight() != 0 {
			t.Errorf("%d requests in the end", l.InFlight())
		}
	})
}

// Ensure an answer that comes before the end of its request leaves nobody waiting.
func TestAnswerBeforeTheRequestsEnd(t *testing.T) {
	l, w := NewLive(), new(wait)
	if took := l.answered(w, http.StatusOK, time.Now()); took != 0 {
		t.Errorf("took %s", took)
	}
	l.begin(w, time.Now())
	if n, idle := l.InFlight(), l.Idle(); n != 0 || idle != nil {
		t.Errorf("%d requests, idle: %t", n, idle == nil)
	}
}

// slowBody is what a client sends piece by piece.
type slowBody struct {
	read func()
	left int
	err  error // with the last piece
}

func (b *slowBody) Read(p []byte) (int, error) {
	b.read()
	n := min(len(p), b.left, 1<<10)
	if b.left -= n; b.left == 0 {
		return n, b.err
	}
	return n, nil
}

// Ensure the server is waited for only from the moment at which it can answer, on both ways: until then the client is.
func TestWaitBeginsWithTheEndOfTheRequest(t *testing.T) {
	for way, length := range map[string]int{"short": shortBody, "long": shortBody + 1} {
		live := NewLive()
		upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil && (live.InFlight() != 1 || !live.Present()) {
				t.Errorf("%s: %d wait for the server", way, live.InFlight())
			}
		}))
		t.Cleanup(upstream.Close)
		p := forwarding(t, upstream.URL)
		p.Live = live
		for left, end := range map[int]error{length: io.EOF, length - 1: io.ErrUnexpectedEOF} {
			at := 0
			body := &slowBody{left: left, err: end, read: func() {
				if at++; live.InFlight() != 0 || live.Idle() != nil {
					t.Errorf("%s: %d wait for the server at read %d of the body", way, live.InFlight(), at)
				}
			}}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/fhir/Patient", body)
			r.ContentLength = int64(length)
			answer := httptest.NewRecorder()
			aborted := func() (aborted bool) {
				defer func() { aborted = recover() != nil }()
				p.newForwarder().ServeHTTP(answer, r)
				return false
			}()
			if left := !errors.Is(end, io.EOF); left != aborted || !left && answer.Code != http.StatusOK {
				t.Errorf("%s, %v: %d, aborted: %t", way, end, answer.Code, aborted)
			}
		}
		counts := live.waits[0][kindWrite].load()
		if n := sum(&counts); n != 1 || live.InFlight() != 0 {
			t.Errorf("%s: %g waits, want that for the server alone; %d wait in the end", way, n, live.InFlight())
		}
	}
}
