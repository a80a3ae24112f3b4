package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/state"
)

// simulated is a FHIR server with a few cores, on which requests take turns of some milliseconds, in a synctest bubble. A read takes
// a user 20 ms of a core on average, a search 60, a page of an export one for each row.
type simulated struct {
	t      *testing.T
	sample *fhirtest.Server
	cores  chan struct{}
	slower atomic.Int64 // than that, by this factor
	random *rand.Rand
	users  http.Handler // the proxy before it

	engine *exporter.Exporter
	store  *state.Store
	live   *proxy.Live
}

// rows is how many the server holds.
const rows = 6000

// simulate runs fn on a simulated server behind a proxy with an exporter.
func simulate(t *testing.T, cores int, fn func(*simulated)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &simulated{t: t, sample: fhirtest.New(fhirtest.Plain(), "/fhir"), cores: make(chan struct{}, cores), random: rand.New(rand.NewPCG(1, 2))}
		s.slower.Store(1)
		for i := range rows {
			if err := s.sample.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":"a-%d"}`, i), time.Now().Add(time.Duration(i-2*rows)*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		client, err := fhir.NewClient(fhir.Config{BaseURL: "http://fhir.example/fhir", Transport: roundTrip(s.page)})
		if err != nil {
			t.Fatal(err)
		}
		if s.store, err = state.Open(filepath.Join(t.TempDir(), "state.db")); err != nil {
			t.Fatal(err)
		}
		bucket, err := blob.NewDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		s.live = proxy.NewLive()
		s.engine, err = exporter.New(exporter.Config{
			Client: client, Store: s.store, Bucket: bucket, Spool: t.TempDir(), Settle: time.Second, PageSize: 50, Traffic: s.live,
			WithoutReferenced: true, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		upstream, err := fhir.ParseBase("http://fhir.example/fhir")
		if err != nil {
			t.Fatal(err)
		}
		c := &config{}
		s.users, err = proxy.New(proxy.Config{
			Upstream: upstream, Client: client, Exports: s.engine, Jobs: s.store, Bucket: bucket, TypesOf: c.typesOf, LinkKey: make([]byte, proxy.MinLinkKey),
			Transport: roundTrip(s.user), Live: s.live, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.engine.Run(ctx) }()
		fn(s)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// work takes its turns on the cores.
func (s *simulated) work(d time.Duration) {
	const most = 5 * time.Millisecond
	for d *= time.Duration(s.slower.Load()); d > 0; d -= most {
		s.cores <- struct{}{}
		time.Sleep(min(d, most)) // in a bubble
		<-s.cores
	}
}

// page answers a request of an export.
func (s *simulated) page(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	asked := r.Clone(r.Context())
	if asked.Host = r.URL.Host; asked.Body == nil {
		asked.Body = http.NoBody
	}
	s.sample.ServeHTTP(recorder, asked)
	s.work(5*time.Millisecond + time.Duration(strings.Count(recorder.Body.String(), `"resource"`))*time.Millisecond)
	return recorder.Result(), r.Context().Err()
}

// user answers a request of a user, which says how much work it is.
func (s *simulated) user(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	work, err := time.ParseDuration(r.Header.Get("Work"))
	if err != nil {
		return nil, err
	}
	s.work(work)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r, ProtoMajor: 1}, nil
}

// asked lets users ask at a rate while during runs, and returns how long they waited.
func (s *simulated) asked(rate float64, during func()) []time.Duration {
	var mu sync.Mutex
	var took []time.Duration
	var group sync.WaitGroup
	over := make(chan struct{})
	group.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Duration(s.random.ExpFloat64() / rate * float64(time.Second))):
			}
			path, mean := "/fhir/Patient/a-1", 20*time.Millisecond
			if s.random.IntN(4) == 0 {
				path, mean = "/fhir/Patient?name=a", 60*time.Millisecond
			}
			r := httptest.NewRequestWithContext(s.t.Context(), http.MethodGet, path, nil)
			r.Header.Set("Work", time.Duration(s.random.ExpFloat64()*float64(mean)).String())
			group.Go(func() {
				began := time.Now()
				s.users.ServeHTTP(httptest.NewRecorder(), r)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(began))
			})
		}
	})
	during()
	close(over)
	group.Wait()
	slices.Sort(took)
	return took
}

// export runs one to its end and returns how long that took, without the pause before it.
func (s *simulated) export() time.Duration {
	began := time.Now()
	job, err := s.engine.KickOff(s.t.Context(), state.Kickoff{Level: state.System, Types: []string{"Patient"}})
	if err != nil {
		s.t.Fatal(err)
	}
	for job.Running() {
		<-time.After(100 * time.Millisecond)
		if job, err = s.store.Get(s.t.Context(), job.ID); err != nil {
			s.t.Fatal(err)
		}
	}
	took := time.Since(began)
	if err := s.engine.Cancel(s.t.Context(), job.ID); err != nil {
		s.t.Fatal(err)
	}
	if job.Status != state.Completed {
		s.t.Fatalf("the export is %s: %v", job.Status, job.Issues)
	}
	return took
}

// exports runs one after another for a span, and returns how long one took on average.
func (s *simulated) exports(span time.Duration) time.Duration {
	began, n := time.Now(), 0
	for n == 0 || time.Since(began) < span {
		s.export()
		n++
	}
	return time.Since(began) / time.Duration(n)
}

// Ensure users of a busy server hardly wait longer beside exports, which go on nonetheless.
func TestExportsGiveWayToUsers(t *testing.T) {
	simulate(t, 2, func(s *simulated) {
		const rate, span = 22, 3 * time.Minute // a third of what the cores can do
		free := s.export()
		alone := s.asked(rate, func() { <-time.After(span) })
		var took time.Duration
		beside := s.asked(rate, func() { took = s.exports(span) })
		p99 := func(waits []time.Duration) time.Duration { return waits[len(waits)*99/100] }
		t.Logf("an export takes %v, beside users %v; p99 of users %v, beside exports %v", free, took, p99(alone), p99(beside))
		if ratio := float64(p99(beside)) / float64(p99(alone)); ratio > exporter.DefaultLiveSlowdown+0.15 { // chance is worth that much
			t.Errorf("p99 of users is %.2f times as long beside exports", ratio)
		}
		if pace := float64(free) / float64(took); pace < 0.1 {
			t.Errorf("exports keep %.2f of their pace, want a tenth", pace)
		}
	})
}

// Ensure exports are not blamed for a server that becomes slow by itself, and take what users leave.
func TestSlowServerStarvesNoExport(t *testing.T) {
	simulate(t, 4, func(s *simulated) {
		free := s.export()
		var before, during time.Duration
		s.asked(3, func() {
			s.exports(3 * time.Minute)
			before = s.exports(3 * time.Minute) // long enough for more than one of the turns in which the share moves
			s.slower.Store(3)
			s.exports(2 * time.Minute) // until that is known
			during = s.exports(5 * time.Minute)
		})
		t.Logf("an export takes %v, beside users %v, on a slow server %v", free, before, during)
		if during > 5*before {
			t.Errorf("a server three times as slow makes exports slower from %v to %v", before, during)
		}
	})
}

// Ensure that the largest live_slowdown takes no account of users, and any other does.
func TestLargestSlowdownTakesNoAccountOfUsers(t *testing.T) {
	for slowdown, want := range map[float64]bool{exporter.DefaultLiveSlowdown: true, anySlowdown - 1: true, anySlowdown: false} {
		s := startSidecar(t, "http://127.0.0.1:1/fhir", func(c *config) { c.LiveSlowdown = slowdown })
		if got := s.server.exporter.Traffic != nil; got != want {
			t.Errorf("live_slowdown %g: users count: got %t, want %t", slowdown, got, want)
		}
	}
}
