package exporter_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure no request of any worker comes before the server wants it, in whatever form and for however long it says so, and that
// the first one comes soon after.
func TestRetryAfterBindsEveryRequest(t *testing.T) {
	for name, test := range map[string]struct {
		header func() http.Header
		wait   time.Duration
	}{
		"seconds":      {func() http.Header { return http.Header{"Retry-After": {"7"}} }, 7 * time.Second},
		"milliseconds": {func() http.Header { return http.Header{"X-Ms-Retry-After-Ms": {"4500"}} }, 4500 * time.Millisecond},
		"date": {func() http.Header {
			return http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}
		}, 59 * time.Second},
		"twenty minutes": {func() http.Header { return http.Header{"Retry-After": {"1200"}} }, 20 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) { c.PageSize, c.Workers = 10, 8 }
			fill := func(s *fhirtest.Server) { spread(t, s, "Observation", 400, 7*time.Second, time.Hour) }
			inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(system()))
				var mu sync.Mutex
				var refused time.Time
				var later []time.Duration
				pages := 0
				b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
					mu.Lock()
					defer mu.Unlock()
					if !refused.IsZero() {
						later = append(later, time.Since(refused))
						return false
					}
					if isRowPage(r) {
						pages++
					}
					if pages < 10 {
						return false
					}
					refused = time.Now()
					for name, values := range test.header() {
						w.Header()[name] = values
					}
					refuse(w, http.StatusTooManyRequests)
					return true
				}}
				same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
				for _, after := range later {
					switch {
					case after <= latency: // it was under way
						continue
					case after < test.wait:
						t.Errorf("a request came after %s, want none for %s", after, test.wait)
					case after > test.wait+3*time.Second:
						t.Errorf("the first request came after %s, want it soon after %s", after, test.wait)
					}
					break
				}
			})
		})
	}
}
