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

// histories are the ways in which a server can have one.
func histories() map[string]fhirtest.Personality {
	return map[string]fhirtest.Personality{
		"of types":     fhirtest.Plain(),
		"of resources": with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.HistoryInstanceOnly = true }),
		"none":         with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true }),
	}
}

// disturb does something when the first page of Observations is asked for.
func disturb(b *bubble, what func()) {
	done := false
	b.link.hook = func(r *http.Request) {
		if !done && isRowPage(r) && strings.HasSuffix(r.URL.Path, "/Observation") {
			done = true
			what()
		}
	}
}

// Ensure what is changed after T and before it is read is as of T where a type or a resource has a history, and what
// without_history says where there is none; and that deletions which no history of the type tells are remarked, or end a strict export.
func TestWithoutHistory(t *testing.T) {
	type outcome struct{ row, says string }
	const exact, lost, newer, fails = "exact", "lost", "newer", "fails"
	wanted := func(history string, mode exporter.WithoutHistory, deleted bool) outcome {
		switch {
		case history == "of types", history == "of resources" && !deleted:
			return outcome{exact, ""}
		case mode == exporter.Strict:
			return outcome{fails, ""}
		case deleted:
			return outcome{lost, "1 Observation resources that were deleted after the transaction time are missing"}
		case mode == exporter.OmitChanged:
			return outcome{lost, "1 Observation resources that were changed after the transaction time are missing"}
		}
		return outcome{newer, "1 Observation resources that were changed after the transaction time are included as they are now"}
	}
	for history, server := range histories() {
		for _, mode := range []exporter.WithoutHistory{exporter.Strict, exporter.OmitChanged, exporter.IncludeCurrent} {
			for _, deleted := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/deleted=%v", history, mode, deleted), func(t *testing.T) {
					t.Parallel()
					edit := func(c *exporter.Config) { smallPages(c); c.WithoutHistory = mode }
					inBubble(t, server, edit, thirtyRows(t), func(t *testing.T, b *bubble) {
						probeBefore(b)
						want := b.snapshot()
						disturb(b, func() {
							must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"made-later"}`)))
							if deleted {
								must(t, b.sample.Delete("Observation", "Obs-29"))
								return
							}
							must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"fr"}`)),
								b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"de"}`)))
						})
						job, expected := b.finish(b.kickOff(ofObservations())), wanted(history, mode, deleted)
						if expected.row == fails {
							if job.Status != state.Failed || job.Failure.Code != "incomplete" || !strings.Contains(job.Failure.Text, "without_history is strict") {
								t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
							}
							return
						}
						got := b.rows(job)
						switch row, found := got["Observation/Obs-29"]; {
						case expected.row == exact:
						case found != (expected.row == newer), found && !strings.Contains(row, `"de"`):
							t.Errorf("the row is %q, want it %s", row, expected.row)
						default:
							delete(got, "Observation/Obs-29")
							delete(want, "Observation/Obs-29")
						}
						same(t, got, want)
						said := fmt.Sprint(job.Issues)
						if !strings.Contains(said, expected.says) || expected.says == "" && strings.Contains(said, "1 Observation resources") {
							t.Errorf("the remarks are %s, want %q", said, expected.says)
						}
						if (history == "of types") != (len(job.Issues) == 0) {
							t.Errorf("the remarks are %s", said)
						}
					})
				})
			}
		}
	}
}

// Ensure a row whose own history is not there after all is not left out without a word.
func TestRowWithoutItsHistory(t *testing.T) {
	for mode, rows := range map[exporter.WithoutHistory]int{exporter.IncludeCurrent: 30, exporter.OmitChanged: 29, exporter.Strict: 0} {
		t.Run(string(mode), func(t *testing.T) {
			edit := func(c *exporter.Config) { smallPages(c); c.WithoutHistory = mode }
			inBubble(t, histories()["of resources"], edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				probeBefore(b)
				disturb(b, func() { must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"fr"}`))) })
				b.link.handler = &altered{sample: b.link.handler, before: refusing(http.StatusNotFound, func(r *http.Request) bool {
					return strings.HasSuffix(r.URL.Path, "/Obs-29/_history")
				})}
				job := b.finish(b.kickOff(ofObservations()))
				if mode == exporter.Strict {
					if job.Status != state.Failed || job.Failure.Code != "incomplete" {
						t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
					}
					return
				}
				if got := len(b.rows(job)); got != rows || !says(job, "1 Observation resources that were changed") {
					t.Errorf("%d rows, want %d; the remarks are %+v", got, rows, job.Issues)
				}
			})
		})
	}
}

// Ensure a row that is changed in the second after T is as of T where windows end with that second: it is met in it, and not
// written.
func TestChangeInTheSecondAfterT(t *testing.T) {
	for history, server := range histories() {
		t.Run(history, func(t *testing.T) {
			inBubble(t, server, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) { // whole seconds, so no milliseconds are probed
				probeBefore(b)
				want := b.snapshot()
				id := b.kickOff(ofObservations())
				for job := (&state.Job{}); !time.Now().After(job.TransactionTime) || job.TransactionTime.IsZero(); <-time.After(100 * time.Millisecond) {
					var err error
					job, err = b.store.Get(t.Context(), id)
					must(t, err)
				}
				must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"fr"}`)))
				job := b.finish(id)
				got := b.rows(job)
				if history == "none" {
					if !says(job, "1 Observation resources that were changed") || len(got) != 30 {
						t.Errorf("%d rows, want 30 and a remark: %+v", len(got), job.Issues)
					}
					return
				}
				same(t, got, want)
			})
		})
	}
}

// Ensure a search for what has changed that fails is a hole, which names the type; and that a broken row before T costs no more
// than itself, though the search begins before it.
func TestSearchForChangesThatFails(t *testing.T) {
	for name, broken := range map[string]string{"row after T": "Obs-29", "row before T": "last"} {
		for _, mode := range []exporter.WithoutHistory{exporter.Strict, exporter.IncludeCurrent} {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.WithoutHistory, c.AllowPartial = mode, true }
				inBubble(t, histories()["of resources"], edit, thirtyRows(t), func(t *testing.T, b *bubble) {
					probeBefore(b)
					want := b.snapshot()
					must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"last"}`)))
					b.sample.Poison("Observation", broken)
					disturb(b, func() { must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"fr"}`))) })
					job := b.finish(b.kickOff(ofObservations()))
					if mode == exporter.Strict && broken == "Obs-29" {
						if job.Status != state.Failed || job.Failure.Code != "incomplete" {
							t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
						}
						return
					}
					got := b.rows(job)
					delete(got, "Observation/last")
					if broken == "Obs-29" {
						delete(want, "Observation/Obs-29")
					}
					same(t, got, want)
					if (broken == "Obs-29") != says(job, "Observation: the history cannot be read") {
						t.Errorf("the remarks are %+v", job.Issues)
					}
				})
			})
		}
	}
}

// Ensure a row stands once in the output where a commit shows after its old version was read, and its new one on a later page:
// the crawl has both then, and the history that the repair reads does not have one that took longer than its span.
func TestLateCommitDoesNotDoubleARow(t *testing.T) {
	for history, server := range histories() {
		for _, took := range []time.Duration{0, 90 * time.Second} {
			for _, later := range []bool{false, true} {
				if later && (history == "none" || history == "of types" && took > 0) { // nobody has, or looks for, the version between
					continue
				}
				t.Run(fmt.Sprintf("%s/since %s before/changed again=%v", history, took, later), func(t *testing.T) {
					t.Parallel()
					inBubble(t, server, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
						probeBefore(b)
						begun, pages := time.Now().Add(-took), 0
						b.link.hook = func(r *http.Request) {
							if !isRowPage(r) || !strings.HasSuffix(r.URL.Path, "/Observation") {
								return
							}
							if pages++; pages == 2 {
								must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"Obs-0","language":"fr"}`), begun, time.Now()))
							}
							if pages == 4 && later {
								must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-0","language":"de"}`)))
							}
						}
						id := b.kickOff(ofObservations())
						job := b.finish(id)
						if pages < 4 {
							t.Errorf("only %d pages were read", pages)
						}
						want := map[string]string{}
						for key, body := range b.sample.AsOf(job.TransactionTime) {
							want[key] = string(body)
						}
						same(t, b.rows(job), want)
						if history == "of types" && took == 0 && (len(job.Proof) != 1 || job.Proof[0].Verdict != state.Proved) {
							t.Errorf("the account is %+v, want it proved", job.Proof)
						}
						if !says(job, "1 Observation resource was written before the transaction time") {
							t.Errorf("the remarks are %+v, want one of a late write", job.Issues)
						}
					})
				})
			}
		}
	}
}
