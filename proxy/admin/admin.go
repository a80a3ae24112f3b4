// Package admin is the front door for operators: health, metrics and the profile of the FHIR server on a port of their own,
// so that no path of the FHIR server is shadowed.
//
// It promises that none of its routes asks the upstream or the bucket, so that a broken bucket does not take a
// FHIR server out of its Service, and that none shows a resource, an id of a patient or a secret.
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

// New returns the handler. metrics is what /metrics shows, server what /profile does.
func New(metrics prometheus.Gatherer, server profiler) *Admin {
	a := &Admin{mux: http.NewServeMux()}
	a.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") })
	a.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if a.ready.Load() {
			answer(w, http.StatusOK, "ok\n")
			return
		}
		answer(w, http.StatusServiceUnavailable, "not forwarding\n")
	})
	a.mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	a.mux.Handle("GET /profile", showProfile(server))
	return a
}

// SetReady says whether the process can forward requests.
func (a *Admin) SetReady(ready bool) { a.ready.Store(ready) }

// ServeHTTP answers /livez, /readyz, /metrics and /profile.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a probe that has left wants no answer
}
