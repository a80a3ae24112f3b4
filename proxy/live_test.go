package proxy_test

import (
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

// waiting forwards to a server in a synctest bubble that answers after a time.
type waiting struct {
	t       *testing.T
	live    *proxy.Live
	handler http.Handler
	metrics *proxy.Metrics
	takes   time.Duration
	status  int
	err     error
}

// RoundTrip is the server.
func (s *waiting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, err := io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	time.Sleep(s.takes) // in a bubble
	if s.err != nil {
		return nil, s.err
	}
	return &http.Response{StatusCode: s.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
}

func (s *waiting) ask(n int, target string, takes time.Duration) {
	method, path, _ := strings.Cut(target, " ")
	s.takes = takes
	for range n {
		s.handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(s.t.Context(), method, "/fhir"+path, nil))
	}
}

func measured(t *testing.T, fn func(*testing.T, *waiting)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &waiting{t: t, live: proxy.NewLive(), metrics: proxy.NewMetrics(), status: http.StatusOK}
		upstream, err := fhir.ParseBase("http://fhir.example/fhir")
		if err != nil {
			t.Fatal(err)
		}
		client, err := fhir.NewClient(fhir.Config{BaseURL: "http://fhir.example/fhir"})
		if err != nil {
			t.Fatal(err)
		}
		store, err := state.Open(filepath.Join(t.TempDir(), "state.db"))
		if err != nil {
			t.Fatal(err)
		}
		bucket, err := blob.NewDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		types := func(state.Level, *fhir.CapabilityStatement) ([]string, []string, error) { return nil, nil, nil }
		s.handler, err = proxy.New(proxy.Config{
			Upstream: upstream, Client: client, Exports: &exports{store: store}, Jobs: store, Bucket: bucket, TypesOf: types,
			LinkKey: linkKey, Log: slog.New(slog.DiscardHandler), Transport: s, Live: s.live, Metrics: s.metrics,
		})
		if err != nil {
			t.Fatal(err)
		}
		fn(t, s)
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
}

const (
	aRead   = "GET /Patient/1"
	aSearch = "GET /Observation?patient=1"
)

// Ensure what users wait beside exports is compared with what they wait without, by kind of request: not by how many of each there
// are, and not with what they waited long ago.
func TestSlowdownOfUsers(t *testing.T) {
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		alone, beside func(*waiting)
		want          float64
	}{
		"as before": {func(s *waiting) { s.ask(50, aRead, 20*ms) }, func(s *waiting) { s.ask(50, aRead, 20*ms) }, 1},
		"twice":     {func(s *waiting) { s.ask(50, aRead, 20*ms) }, func(s *waiting) { s.ask(50, aRead, 40*ms) }, 2},
		"a fifth":   {func(s *waiting) { s.ask(80, aRead, ms); s.ask(20, aRead, 20*ms) }, func(s *waiting) { s.ask(80, aRead, ms); s.ask(20, aRead, 40*ms) }, 2},
		"a stall":   {func(s *waiting) { s.ask(97, aRead, 20*ms); s.ask(3, aRead, time.Minute) }, func(s *waiting) { s.ask(100, aRead, 20*ms) }, 1},
		"another mix": {
			func(s *waiting) { s.ask(90, aRead, 2*ms); s.ask(10, aSearch, 500*ms) },
			func(s *waiting) { s.ask(10, aRead, 2*ms); s.ask(90, aSearch, 500*ms) },
			1,
		},
		"another kind": {func(s *waiting) { s.ask(50, aRead, 2*ms) }, func(s *waiting) { s.ask(50, aRead, 2*ms); s.ask(50, "POST /Patient", 500*ms) }, 1},
		"a new pace": {
			func(s *waiting) { s.ask(500, aRead, 20*ms); time.Sleep(time.Minute); s.ask(500, aRead, 200*ms) },
			func(s *waiting) { s.ask(100, aRead, 200*ms) },
			1,
		},
		"refused": {
			func(s *waiting) { s.ask(50, aRead, 20*ms) },
			func(s *waiting) { s.ask(50, aRead, 20*ms); s.status = http.StatusNotFound; s.ask(50, aRead, 400*ms) },
			1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			measured(t, func(t *testing.T, s *waiting) {
				test.alone(s)
				if ratio, doubt := s.live.Slowdown(); ratio != 1 || !math.IsInf(doubt, 1) {
					t.Errorf("%g, doubt %g before there is anything to compare", ratio, doubt)
				}
				s.live.Beside(time.Now().Add(time.Hour))
				test.beside(s)
				ratio, doubt := s.live.Slowdown()
				if math.Abs(ratio/test.want-1) > 0.1 || doubt > 0.5 {
					t.Errorf("%g, doubt %g, want %g", ratio, doubt, test.want)
				}
				s.live.Forget(false)
				if _, doubt := s.live.Slowdown(); !math.IsInf(doubt, 1) {
					t.Errorf("doubt %g of what was forgotten", doubt)
				}
			})
		})
	}
}

// Ensure a server that fails for having too much to do is thought of as slow.
func TestFailuresSlowDown(t *testing.T) {
	for _, fail := range []func(*waiting){
		func(s *waiting) { s.status = http.StatusServiceUnavailable },
		func(s *waiting) { s.status = http.StatusTooManyRequests },
		func(s *waiting) { s.err = errors.New("no answer") },
	} {
		measured(t, func(t *testing.T, s *waiting) {
			s.ask(50, aRead, 20*time.Millisecond)
			s.live.Beside(time.Now().Add(time.Hour))
			s.ask(45, aRead, 20*time.Millisecond)
			fail(s)
			s.ask(5, aRead, time.Millisecond)
			if ratio, _ := s.live.Slowdown(); ratio < 10 {
				t.Errorf("%g", ratio)
			}
			if n := s.live.InFlight(); n != 0 {
				t.Errorf("%d requests wait in the end", n)
			}
		})
	}
}

// lateBody ends after a minute.
type lateBody struct{}

func (lateBody) Read([]byte) (int, error) {
	time.Sleep(time.Minute) // in a bubble
	return 0, io.EOF
}

// Ensure the time in which clients send counts neither as the server's nor as a user's.
func TestUploadsAreNoWaits(t *testing.T) {
	measured(t, func(t *testing.T, s *waiting) {
		const takes, uploads = 20 * time.Millisecond, 30
		s.ask(50, "POST /Patient", takes)
		s.live.Beside(time.Now().Add(time.Hour))
		time.Sleep(time.Minute)
		go func() {
			for range uploads {
				s.handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, "/fhir/Patient", lateBody{}))
			}
		}()
		time.Sleep(30 * time.Second)
		if s.live.Present() || s.live.Idle() != nil {
			t.Error("a client that has not sent its request is a user who waits")
		}
		time.Sleep(uploads * 61 * time.Second)
		if ratio, doubt := s.live.Slowdown(); math.Abs(ratio-1) > 0.1 || doubt > 0.5 {
			t.Errorf("slowdown %g, doubt %g", ratio, doubt)
		}
		histograms := histograms(t, s.metrics)
		if got := histograms["sidecar_proxy_first_byte_seconds write 2xx"]; got.count != 50+uploads || math.Abs(got.seconds-((50+uploads)*takes).Seconds()) > 0.01 {
			t.Errorf("first bytes: %v", got)
		}
		if got := histograms["sidecar_proxy_request_seconds write 2xx"]; got.seconds < uploads*60 {
			t.Errorf("whole requests: %v", got)
		}
	})
}

// Ensure there are users while one waits and some seconds longer.
func TestPresenceOfUsers(t *testing.T) {
	measured(t, func(t *testing.T, s *waiting) {
		if s.live.Present() {
			t.Error("users before the first one")
		}
		go s.ask(1, aRead, 30*time.Second)
		time.Sleep(29 * time.Second)
		if n := s.live.InFlight(); !s.live.Present() || n != 1 {
			t.Errorf("present: %t, %d requests", s.live.Present(), n)
		}
		time.Sleep(2 * time.Second)
		if s.live.Present() {
			t.Error("users long after the last one")
		}
	})
}
