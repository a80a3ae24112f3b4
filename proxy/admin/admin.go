// Package admin is the front door for operators: health, metrics, the exports and the profile of the FHIR server on a port
// of their own, so that no path of the FHIR server is shadowed.
//
// It promises that none of its routes asks the upstream or the bucket, so that a broken bucket does not take a
// FHIR server out of its Service, that none shows a resource or an id of a patient, and that the ids of exports, which are
// the keys to their files, are shown to callers on the same machine and to those with the operators' token alone.
package admin

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Admin answers the admin port.
type Admin struct {
	mux   *http.ServeMux
	ready atomic.Bool
}

// Config is what the routes show, and to whom.
type Config struct {
	Metrics prometheus.Gatherer
	Server  profiler
	Exports exports
	Work    worker
	// Token is the Bearer token of operators who are not on the same machine; empty means that there are none.
	Token string
}

// New returns the handler.
func New(c Config) *Admin {
	a := &Admin{mux: http.NewServeMux()}
	a.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") })
	a.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if a.ready.Load() {
			answer(w, http.StatusOK, "ok\n")
			return
		}
		answer(w, http.StatusServiceUnavailable, "not forwarding\n")
	})
	a.mux.Handle("GET /metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{}))
	of := &jobs{stored: c.Exports, work: c.Work}
	for pattern, handler := range map[string]http.Handler{
		"GET /profile":   showProfile(c.Server),
		"GET /jobs":      http.HandlerFunc(of.list),
		"GET /jobs/{id}": http.HandlerFunc(of.one),
	} {
		a.mux.Handle(pattern, guarded(c.Token, handler))
	}
	return a
}

// SetReady says whether the process can forward requests.
func (a *Admin) SetReady(ready bool) { a.ready.Store(ready) }

// ServeHTTP answers /livez, /readyz and /metrics to everybody, /profile, /jobs and /jobs/{id} as guarded says.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a probe that has left wants no answer
}
