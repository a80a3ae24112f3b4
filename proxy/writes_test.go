package proxy

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// upstreamOf answers in memory, when told to.
type upstreamOf func(*http.Request) (*http.Response, error)

func (f upstreamOf) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Ensure an export waits for the writes that began before T, and for settle after those whose outcome nobody knows.
func TestWaitForWritesInFlight(t *testing.T) {
	const settle = 10 * time.Second
	for name, test := range map[string]struct {
		method, path string
		status       int
		takes        time.Duration // until the server answers
		leaves       time.Duration // when the client leaves, 0 for never
		broken       bool          // the answer is cut off
		begins       time.Duration // after T
		want         time.Duration // after T
	}{
		"answered before":      {method: http.MethodPut, status: 200, begins: -time.Second},
		"answered later":       {method: http.MethodPut, status: 201, takes: 3 * time.Second, begins: -time.Second, want: 2 * time.Second},
		"refused":              {method: http.MethodDelete, status: 409, begins: -time.Second},
		"began after T":        {method: http.MethodPut, status: 200, takes: time.Minute, begins: time.Second},
		"longer than settle":   {method: http.MethodPost, status: 200, takes: time.Minute, begins: -time.Second, want: 59 * time.Second},
		"accepted":             {method: http.MethodPost, status: 202, begins: -time.Second, want: settle - time.Second},
		"gateway timeout":      {method: http.MethodPost, status: 504, takes: 2 * time.Second, begins: -time.Second, want: settle + time.Second},
		"client left":          {method: http.MethodPut, status: 200, takes: time.Minute, leaves: 2 * time.Second, begins: -time.Second, want: settle + time.Second},
		"answer cut":           {method: http.MethodPut, status: 200, broken: true, begins: -time.Second, want: settle - time.Second},
		"a read":               {method: http.MethodGet, status: 200, takes: time.Minute, begins: -time.Second},
		"a search by POST":     {method: http.MethodPost, path: "/_search", status: 200, takes: time.Minute, begins: -time.Second},
		"an operation by POST": {method: http.MethodPost, path: "/$expunge", status: 200, takes: 5 * time.Second, begins: -time.Second, want: 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				writes := NewWrites()
				<-time.After(time.Minute) // what was written before the start is settled
				transport := upstreamOf(func(r *http.Request) (*http.Response, error) {
					select {
					case <-time.After(test.takes):
					case <-r.Context().Done():
						return nil, r.Context().Err()
					}
					var body io.Reader = strings.NewReader("{}")
					if test.broken {
						body = io.MultiReader(body, brokenBody{})
					}
					return &http.Response{StatusCode: test.status, Header: http.Header{}, Body: io.NopCloser(body), Request: r}, nil
				})
				p := &Proxy{Config: Config{
					Upstream: &url.URL{Scheme: "http", Host: "fhir"}, Transport: transport, Writes: writes, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(), Live: NewLive(),
				}}
				forward := p.newForwarder()
				at := time.Now().Add(2 * time.Second) // T
				// ReverseProxy aborts a cut answer only below a server.
				ctx, leave := context.WithCancel(context.WithValue(t.Context(), http.ServerContextKey, &http.Server{}))
				defer leave()
				go func() {
					defer func() { _ = recover() }() // as net/http does
					<-time.After(time.Until(at.Add(test.begins)))
					if test.leaves > 0 {
						time.AfterFunc(test.leaves, leave)
					}
					r := httptest.NewRequestWithContext(ctx, test.method, "/Patient/1"+test.path, strings.NewReader("{}"))
					forward.ServeHTTP(httptest.NewRecorder(), r)
				}()
				<-time.After(time.Until(at))
				synctest.Wait()
				if err := writes.Wait(t.Context(), at, settle); err != nil {
					t.Fatal(err)
				}
				if got := time.Since(at); got != test.want {
					t.Errorf("waited %s after T, want %s", got, test.want)
				}
				<-time.After(2 * time.Minute) // let the request end
			})
		})
	}
}

// Ensure what was written before the process began counts as in flight.
func TestWaitForWritesBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes := NewWrites()
		begin := time.Now()
		if err := writes.Wait(t.Context(), begin.Add(time.Second), 5*time.Second); err != nil || time.Since(begin) != 5*time.Second {
			t.Errorf("waited %s (%v), want 5 s", time.Since(begin), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := writes.Wait(ctx, time.Now(), time.Hour); err == nil {
			t.Error("a wait that was cancelled is no error")
		}
	})
}

type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Ensure an export waits for a write of the sidecar's own, and for settle after one whose outcome nobody knows.
func TestWaitForOwnWrites(t *testing.T) {
	for _, answered := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			writes := NewWrites()
			<-time.After(time.Minute)
			go writes.Own(func() bool {
				<-time.After(3 * time.Second)
				return answered
			})
			<-time.After(time.Second)
			began, want := time.Now(), 2*time.Second
			if !answered {
				want += 10 * time.Second
			}
			if err := writes.Wait(t.Context(), began, 10*time.Second); err != nil || time.Since(began) != want {
				t.Errorf("answered %t: %v, waited %s, want %s", answered, err, time.Since(began), want)
			}
		})
	}
}
