package exporter_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure a resource that is too long to be held is taken from its page, and not asked for once more as if the page had come
// without it: that read would hold it whole.
func TestLongResourceIsNotReadAgain(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		long := `{"resourceType":"Binary","id":"long","contentType":"text/plain","data":"` + strings.Repeat("QUJD", 1<<19) + `"}`
		if err := s.PutAt([]byte(long), time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		spread(t, s, "Binary", 3, time.Second, 2*time.Hour)
	}
	inBubble(t, fhirtest.Plain(), nil, fill, func(t *testing.T, b *bubble) {
		want, reads := b.snapshot(), 0
		b.link.hook = func(r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/Binary/long") {
				reads++
			}
		}
		same(t, b.rows(b.finish(b.kickOff(system()))), want)
		if reads > 0 {
			t.Errorf("the resource was read %d times beside its page", reads)
		}
	})
}
