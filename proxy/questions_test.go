package proxy_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/state"
)

// served is a server without a network.
type served struct{ http.Handler }

func (s served) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	s.ServeHTTP(recorder, r)
	result := recorder.Result()
	result.Request = r
	return result, nil
}

// allTypes lets every export hold all that the server has.
func allTypes(_ state.Level, s *fhir.CapabilityStatement) (types, beside []string, err error) {
	return s.Types, nil, nil
}

// withoutNetwork is a sidecar before a server, for bubbles.
func withoutNetwork(t *testing.T, sample *fhirtest.Server, live *proxy.Live) http.Handler {
	t.Helper()
	upstream, err := fhir.ParseBase("http://upstream.invalid/fhir")
	if err != nil {
		t.Fatal(err)
	}
	client, err := fhir.NewClient(fhir.Config{BaseURL: upstream.String(), Transport: served{sample}})
	if err != nil {
		t.Fatal(err)
	}
	exports := &exports{kickOff: func(kickoff state.Kickoff) (*state.Job, error) { return &state.Job{ID: "new", Kickoff: kickoff}, nil }}
	handler, err := proxy.New(proxy.Config{
		Upstream: upstream, Intercept: true, Client: client, Exports: exports, Jobs: &state.Store{}, Bucket: signing{}, LinkKey: linkKey, Transport: served{sample},
		TypesOf: allTypes, Log: slog.New(slog.DiscardHandler), Live: live,
	})
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// Ensure that a server is asked eight questions at once for a kick-off, and no more.
func TestQuestionsAtOnceAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sample := fhirtest.New(fhirtest.Plain(), "/fhir")
		var asked, most atomic.Int64
		sample.Gate = func(*http.Request) *fhirtest.Access {
			if now := asked.Add(1); now > most.Load() {
				most.Store(now)
			}
			time.Sleep(100 * time.Millisecond)
			asked.Add(-1)
			return &fhirtest.Access{}
		}
		recorder := httptest.NewRecorder()
		request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/$export", nil)
		request.Header.Set("Authorization", "Bearer a")
		withoutNetwork(t, sample, nil).ServeHTTP(recorder, request)
		if recorder.Code != http.StatusAccepted || most.Load() != 8 {
			t.Errorf("status %d with %d questions at once, want 8", recorder.Code, most.Load())
		}
	})
}

// Ensure that beside users two questions are asked at once for a kick-off, each in a moment in which no user waits, and that a user who
// waits for long keeps nobody from an answer.
func TestQuestionsGiveWayToUsers(t *testing.T) {
	for name, row := range map[string]struct {
		user  time.Duration
		most  int64 // questions at once
		begun bool  // one did while the user waited
	}{
		"one waits for a moment": {user: 60 * time.Millisecond, most: 2},
		"one waits for long":     {user: time.Minute, most: 8, begun: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sample, live := fhirtest.New(fhirtest.Plain(), "/fhir"), proxy.NewLive()
				var questions, asked, most atomic.Int64
				var begun atomic.Bool
				sample.Gate = func(r *http.Request) *fhirtest.Access {
					switch r.URL.Path {
					case "/fhir/Patient/1":
						time.Sleep(row.user)
						return &fhirtest.Access{}
					case "/fhir/metadata":
						return &fhirtest.Access{}
					}
					questions.Add(1)
					if live.InFlight() > 0 {
						begun.Store(true)
					}
					now := asked.Add(1)
					for before := most.Load(); now > before && !most.CompareAndSwap(before, now); before = most.Load() {
					}
					time.Sleep(3 * time.Millisecond)
					asked.Add(-1)
					return &fhirtest.Access{}
				}
				handler := withoutNetwork(t, sample, live)
				var user sync.WaitGroup
				user.Go(func() {
					handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/Patient/1", nil))
				})
				synctest.Wait()
				request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/$export", nil)
				request.Header.Set("Authorization", "Bearer a")
				recorder, began := httptest.NewRecorder(), time.Now()
				handler.ServeHTTP(recorder, request)
				took, slowest := time.Since(began), 3*time.Second
				if recorder.Code != http.StatusAccepted || most.Load() != row.most || begun.Load() != row.begun || took > slowest {
					t.Errorf("status %d after %v, at most %v; %d of %d questions at once, any while a user waited: %v", recorder.Code, took, slowest, most.Load(), questions.Load(), begun.Load())
				}
				user.Wait()
			})
		})
	}
}

// Ensure that what the server says of a client is asked once a minute, whatever is asked at once, and not remembered longer.
func TestVerdictOfTheServerHoldsForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sample := fhirtest.New(fhirtest.Plain(), "/fhir")
		open := true
		sample.Gate = func(r *http.Request) *fhirtest.Access {
			if !open {
				return nil
			}
			return &fhirtest.Access{}
		}
		handler := withoutNetwork(t, sample, nil)
		ask := func(token string) int {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/$export?_type=Patient", nil)
			request.Header.Set("Authorization", "Bearer "+token)
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, request)
			return recorder.Code
		}
		searches := func() (n int) {
			for _, request := range sample.Requests() {
				if request.Path == "/fhir/Patient" {
					n++
				}
			}
			return n
		}
		first := ask("a")
		once := searches()
		open = false
		if second := ask("a"); first != 202 || second != 202 || searches() != once {
			t.Errorf("got %d and %d with %d and %d searches", first, second, once, searches())
		}
		if got := ask("b"); got != 401 {
			t.Errorf("another client: got %d", got)
		}
		time.Sleep(time.Minute + time.Second)
		if got := ask("a"); got != 401 {
			t.Errorf("after a minute: got %d", got)
		}
	})
}
