package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// limit starts the engine anew with other limits of what the server may send.
func (b *bubble) limit(page, resource int64) {
	b.t.Helper()
	wired := b.edit
	b.stop()
	b.edit = func(c *exporter.Config) {
		wired(c)
		client, err := fhir.NewClient(fhir.Config{
			BaseURL: b.upstream, PublicBase: "http://public/fhir", Transport: b.link, MaxPage: page, MaxResource: resource,
		})
		must(b.t, err)
		c.Client = client
	}
	b.start()
}

// Ensure a resource above the limit is closed in on and is a hole that says so; all around it is exported.
func TestResourceThatIsTooLarge(t *testing.T) {
	for _, partial := range []bool{false, true} {
		t.Run(fmt.Sprintf("partial=%v", partial), func(t *testing.T) {
			edit := func(c *exporter.Config) { smallPages(c); c.AllowPartial = partial }
			inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				large := fmt.Sprintf(`{"resourceType":"Observation","id":"large","note":[{"text":%q}]}`, strings.Repeat("x", 50_000))
				want := b.snapshot()
				probeBefore(b)
				must(t, b.sample.Put([]byte(large)))
				b.limit(0, 40_000)
				job := b.finish(b.kickOff(ofObservations()))
				if !partial {
					if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Observation: 1 resources") || !strings.Contains(job.Failure.Text, "too large") {
						t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
					}
					return
				}
				same(t, b.rows(job), want)
				if said := fmt.Sprint(job.Issues); !strings.Contains(said, "too-long") {
					t.Errorf("the remarks are %s", said)
				}
			})
		})
	}
}

// Ensure a server that ignores _count, so that its pages are above the limit, is read in smaller windows.
func TestPagesThatAreTooLarge(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		want := b.snapshot()
		probeBefore(b)
		b.limit(2_000, 0)
		b.link.hook = func(r *http.Request) {
			query := r.URL.Query()
			if query.Has("_count") && strings.HasSuffix(r.URL.Path, "/Observation") {
				query.Set("_count", "1000")
				r.URL.RawQuery = query.Encode()
			}
		}
		same(t, b.rows(b.finish(b.kickOff(ofObservations()))), want)
	})
}
