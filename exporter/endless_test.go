package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// withoutEnd makes pages of Observations link to ever new addresses of the same page.
func (b *bubble) withoutEnd() (pages *int) {
	pages = new(int)
	b.link.handler = &altered{sample: b.link.handler, after: func(r *http.Request, page *bundle) int {
		if !strings.Contains(r.URL.Path, "/Observation") || r.URL.Query().Has("_summary") || len(page.entries()) == 0 {
			return 0
		}
		*pages++
		next := strings.TrimSuffix(r.URL.RawQuery, fmt.Sprintf("&_nonce=%d", *pages-1)) + fmt.Sprintf("&_nonce=%d", *pages)
		(*page)["link"] = []any{map[string]any{"relation": "next", "url": "http://fhir.example" + r.URL.Path + "?" + next}}
		(*page)["changed"] = true
		return 0
	}}
	return pages
}

// Ensure pages that show the same rows again and again, by links of which none repeats, end the export with an error.
func TestPagesWithoutEndAreLeft(t *testing.T) {
	paged := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true })
	inBubble(t, paged, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		probeBefore(b)
		pages := b.withoutEnd()
		job := b.finish(b.kickOff(ofObservations()))
		if job.Status != state.Failed || job.Failure.Code != "incomplete" {
			t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
		}
		if *pages < 1000 || *pages > 20_000 {
			t.Errorf("%d pages were read", *pages)
		}
	})
}
