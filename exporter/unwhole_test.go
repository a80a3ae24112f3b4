package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// ofObservations is the kick-off of the tests of one type.
func ofObservations() state.Kickoff {
	return state.Kickoff{Level: state.System, Types: []string{"Observation"}, Base: "http://public/fhir"}
}

// changeAtRead changes the last of thirty rows when their first page is asked for.
func changeAtRead(t *testing.T, b *bubble, chosen func(*http.Request) bool) {
	t.Helper()
	changed := false
	b.link.hook = func(r *http.Request) {
		if !changed && strings.HasSuffix(r.URL.Path, "/Observation") && chosen(r) {
			changed = true
			must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"fr"}`)))
		}
	}
}

// probeBefore lets an export of nothing learn what the server can do, before it is given trouble.
func probeBefore(b *bubble) {
	b.finish(b.kickOff(state.Kickoff{Level: state.System, Types: []string{"Patient"}, Base: "http://public/fhir"}))
}

// Ensure a history that says itself that it is not whole is not taken for an empty one.
func TestHistoryWithAnErrorInsideIsNoHistory(t *testing.T) {
	const broken = `{"resourceType":"Bundle","type":"history","entry":[{"search":{"mode":"outcome"},` +
		`"resource":{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"incomplete"}]}}]}`
	for _, always := range []bool{false, true} {
		t.Run(fmt.Sprintf("always=%v", always), func(t *testing.T) {
			inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
				probeBefore(b)
				want := b.snapshot()
				changeAtRead(t, b, isRowPage)
				told := 0
				b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, "/Observation/_history") || told > 0 && !always {
						return false
					}
					told++
					w.Header().Set("Content-Type", "application/fhir+json")
					_, err := w.Write([]byte(broken))
					must(t, err)
					return true
				}}
				job := b.finish(b.kickOff(ofObservations()))
				if always && (job.Status != state.Failed || job.Failure.Code != "incomplete") {
					t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
				}
				if !always {
					same(t, b.rows(job), want)
				}
			})
		})
	}
}

// Ensure a type whose history cannot be had is a hole: the export fails, or names it where it may be partial.
func TestHistoryThatIsRefusedIsAHole(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/partial=%v", status, partial), func(t *testing.T) {
				edit := func(cfg *exporter.Config) { smallPages(cfg); cfg.AllowPartial = partial }
				inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
					spread(t, b.sample, "Condition", 5, time.Second, time.Hour)
					probeBefore(b)
					want := b.snapshot()
					b.link.handler = &altered{sample: b.link.handler, before: refusing(status, func(r *http.Request) bool {
						return strings.HasSuffix(r.URL.Path, "/Condition/_history")
					})}
					job := b.finish(b.kickOff(system()))
					if !partial {
						if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Condition: the history cannot be read") {
							t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
						}
						return
					}
					same(t, b.rows(job), want)
					if said := fmt.Sprint(job.Issues); !strings.Contains(said, "Condition: the history cannot be read") || strings.Contains(said, "Observation") {
						t.Errorf("the remarks are %s", said)
					}
					for _, proof := range job.Proof {
						if (proof.Verdict == state.Incomplete) != (proof.Type == "Condition") {
							t.Errorf("the account is %+v", proof)
						}
					}
				})
			})
		}
	}
}

// Ensure that `strict` holds where the server cannot even be asked what has changed.
func TestStrictWithoutHistoryAndOrder(t *testing.T) {
	for name, p := range map[string]fhirtest.Personality{
		"no sort": with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory, p.IgnoreSort = true, true }),
		"no time": with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory, p.IgnoreLastUpdated = true, true }),
	} {
		t.Run(name, func(t *testing.T) {
			edit := func(cfg *exporter.Config) { smallPages(cfg); cfg.WithoutHistory = exporter.Strict }
			inBubble(t, p, edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				job := b.finish(b.kickOff(ofObservations()))
				if job.Status != state.Failed || job.Failure.Code != "incomplete" {
					t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
				}
			})
		})
	}
}

// Ensure what changed after T is found on a server without history although its pages hold fewer rows than were asked for.
func TestChangedRowsOnShortPages(t *testing.T) {
	p := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	fill := func(s *fhirtest.Server) { spread(t, s, "Observation", 120, 7*time.Second, time.Hour) }
	inBubble(t, p, smallPages, fill, func(t *testing.T, b *bubble) {
		probeBefore(b)
		b.link.handler = &altered{sample: b.link.handler, after: func(r *http.Request, page *bundle) int {
			query := r.URL.Query()
			if bounds := query["_lastUpdated"]; len(bounds) != 1 || !strings.HasPrefix(bounds[0], "ge") || !query.Has("_sort") || len(page.entries()) < 3 {
				return 0
			}
			next := *r.URL
			query.Set("_page", "2")
			next.RawQuery = query.Encode()
			(*page)["entry"] = page.entries()[:3]
			(*page)["link"] = []any{map[string]any{"relation": "next", "url": next.String()}}
			(*page)["changed"] = true
			return 0
		}}
		changed := false
		b.link.hook = func(r *http.Request) {
			if changed || !isRowPage(r) || !strings.HasSuffix(r.URL.Path, "/Observation") {
				return
			}
			changed = true
			for i := range 20 {
				must(t, b.sample.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"Obs-%d","language":"fr"}`, 50+i),
					time.Now().Add(time.Duration(i)*time.Millisecond)))
			}
		}
		job := b.finish(b.kickOff(ofObservations()))
		if got := len(b.rows(job)); job.Status != state.Completed || got != 120 {
			t.Errorf("%s with %d rows, want 120: %+v", job.Status, got, job.Issues)
		}
		if said := fmt.Sprint(job.Issues); !strings.Contains(said, "20 Observation resources") || strings.Contains(said, "and 17") {
			t.Errorf("the remarks are %s", said)
		}
	})
}

// Ensure an increment says that it cannot name deletions, and a hole is not taken for deletions.
func TestRemarksWithoutHistoryAreTrue(t *testing.T) {
	p := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	edit := func(cfg *exporter.Config) { smallPages(cfg); cfg.AllowPartial = true }
	inBubble(t, p, edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		probeBefore(b)
		kickoff := ofObservations()
		kickoff.Since = time.Now().Add(-24 * time.Hour)
		if said := fmt.Sprint(b.finish(b.kickOff(kickoff)).Issues); !strings.Contains(said, "deleted since _since cannot be reported") {
			t.Errorf("the remarks are %s", said)
		}
		b.sample.Poison("Observation", "Obs-7")
		said := fmt.Sprint(b.finish(b.kickOff(ofObservations())).Issues)
		if !strings.Contains(said, "1 resources") || strings.Contains(said, "deleted after the transaction time") {
			t.Errorf("the remarks are %s", said)
		}
	})
}

// Ensure a second with more rows than a page is not taken as read when each link of it has expired.
func TestHotSecondWhoseLinksExpire(t *testing.T) {
	p := with(fhirtest.Plain(), func(p *fhirtest.Personality) {
		p.NoSummaryCount, p.Paging, p.PagesLive = true, fhirtest.CachedPages, time.Hour
	})
	fill := func(s *fhirtest.Server) { thirtyRows(t)(s); burst(t, s, "Observation", 55, 90*time.Minute) }
	inBubble(t, p, smallPages, fill, func(t *testing.T, b *bubble) {
		refuseTotals(b.sample)
		probeBefore(b)
		b.sample.Fail(fhirtest.Fault{ExpirePages: http.StatusGone, Times: -1, Match: func(*http.Request) bool { return true }})
		if job := b.finish(b.kickOff(ofObservations())); job.Status != state.Failed || job.Failure.Code != "incomplete" {
			t.Errorf("the export ended %s with %d rows: %+v", job.Status, len(b.rows(job)), job.Failure)
		}
	})
}

// Ensure links that lead in a circle end with the rows that were met, where the server counts as many.
func TestLinksInACircleAreCounted(t *testing.T) {
	fill := func(s *fhirtest.Server) { thirtyRows(t)(s); burst(t, s, "Observation", 25, 90*time.Minute) }
	inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
		probeBefore(b)
		b.link.handler = &altered{sample: b.link.handler, after: func(r *http.Request, page *bundle) int {
			if r.URL.Query().Get("_page") == "3" {
				(*page)["link"] = []any{map[string]any{"relation": "next", "url": "http://fhir.example" + r.URL.Path + "?" + r.URL.RawQuery}}
				(*page)["changed"] = true
			}
			return 0
		}}
		if job := b.finish(b.kickOff(ofObservations())); len(b.rows(job)) != 55 {
			t.Errorf("the export ended %s with %d rows, want 55: %+v", job.Status, len(b.rows(job)), job.Failure)
		}
	})
}

// Ensure a type that refuses to be sorted is read without that, however large it is.
func TestTypeThatIsNotSorted(t *testing.T) {
	for _, rows := range []int{30, 60, 400} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			fill := func(s *fhirtest.Server) { spread(t, s, "Observation", rows, 7*time.Second, time.Hour) }
			inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
				probeBefore(b)
				want := b.snapshot()
				b.link.handler = &altered{sample: b.link.handler, before: refusing(http.StatusBadRequest, func(r *http.Request) bool {
					return strings.HasSuffix(r.URL.Path, "/Observation") && r.URL.Query().Has("_sort")
				})}
				same(t, b.rows(b.finish(b.kickOff(ofObservations()))), want)
			})
		})
	}
}
