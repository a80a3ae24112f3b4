package exporter_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure a job whose server goes away for good fails after give_up, whatever the server does instead of answering, and
// that it frees its slot.
func TestServerThatIsAwayForGood(t *testing.T) {
	const giveUp = 10 * time.Minute
	for name, instead := range map[string]func(http.ResponseWriter, *http.Request){
		"overloaded": func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusServiceUnavailable) },
		"throttled": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "20")
			refuse(w, http.StatusTooManyRequests)
		},
		"answers that stand still": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"resourceType":"Bundle",`)) // the reader waits for the rest
			<-r.Context().Done()
		},
		"broken lines": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) { smallPages(c); c.GiveUp = giveUp }
			inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				var since time.Time
				pages := 0
				b.link.handler = &altered{sample: b.sample, before: func(w http.ResponseWriter, r *http.Request) bool {
					if isRowPage(r) {
						pages++
					}
					if pages < 2 {
						return false
					}
					if since.IsZero() {
						since = time.Now()
					}
					instead(w, r)
					return true
				}}
				job := b.finish(b.kickOff(system()))
				if job.Status != state.Failed {
					t.Fatalf("%s, want a failure", job.Status)
				}
				// The budget begins with the request, which takes its way to the server; the last pause and the last request end
				// behind it.
				if took := job.Finished.Sub(since); took < giveUp-latency || took > giveUp+10*time.Minute {
					t.Errorf("failed after %s, want %s and a little", took, giveUp)
				}
				if strings.Contains(job.Failure.Text, "http") {
					t.Errorf("the failure holds an address: %s", job.Failure.Text)
				}
				b.link.handler = b.sample
				same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot()) // the slot is free
			})
		})
	}
}

// Ensure an export that cannot do without a next link fails when the link leads to another host, which is never asked.
func TestNextLinkElsewhereFailsTheExport(t *testing.T) {
	byLinks := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true })
	inBubble(t, byLinks, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		turned := 0
		b.link.handler = &altered{sample: b.sample, after: func(r *http.Request, page *bundle) int {
			links, _ := (*page)["link"].([]any)
			for _, link := range links {
				if link := link.(map[string]any); link["relation"] == "next" {
					link["url"] = "http://elsewhere.example/fhir/Observation?_page=2"
					(*page)["changed"] = true
					turned++
				}
			}
			return 0
		}}
		b.link.hook = func(r *http.Request) {
			if r.URL.Host != "fhir.example" {
				t.Errorf("%s was asked", r.URL.Host)
			}
		}
		job := b.finish(b.kickOff(system()))
		if turned == 0 || job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Observation") {
			t.Errorf("%s %+v after %d links, want a failure that names the type", job.Status, job.Failure, turned)
		}
	})
}
