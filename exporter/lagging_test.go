package exporter_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// inLag runs fn on a server with thirty Observations and thirty Conditions whose histories show a write only so long after it.
func inLag(t *testing.T, p fhirtest.Personality, lag time.Duration, edit func(*exporter.Config), fn func(*testing.T, *bubble)) {
	t.Helper()
	p.HistoryLag = lag
	fill := func(s *fhirtest.Server) {
		thirtyRows(t)(s)
		spread(t, s, "Condition", 30, 7*time.Second, time.Hour)
		s.CatchUp()
	}
	inBubble(t, p, func(c *exporter.Config) { smallPages(c); edit(c) }, fill, func(t *testing.T, b *bubble) {
		probeBefore(b)
		fn(t, b)
	})
}

// beforeRead does something when the first rows of a type are asked for.
func beforeRead(b *bubble, typ string, what func()) {
	var once sync.Once
	b.link.hook = func(r *http.Request) {
		if isRowPage(r) && strings.HasSuffix(r.URL.Path, "/"+typ) {
			once.Do(what)
		}
	}
}

func put(t *testing.T, b *bubble, key, language string) {
	t.Helper()
	typ, id, _ := strings.Cut(key, "/")
	must(t, b.sample.Put(fmt.Appendf(nil, `{"resourceType":%q,"id":%q,"language":%q}`, typ, id, language)))
}

// sameAsOfT compares an export with the server's log.
func sameAsOfT(t *testing.T, b *bubble, job *state.Job) {
	t.Helper()
	want := map[string]string{}
	for key, body := range b.sample.AsOf(job.TransactionTime) {
		if typ, _, _ := strings.Cut(key, "/"); slices.Contains(job.Types, typ) {
			want[key] = string(body)
		}
	}
	same(t, b.rows(job), want)
}

// Ensure a history that lags behind the searches costs time and no row: what changed after T and before it was read is as of T,
// and so is what the history still shows in an older version. What was deleted shows in no search, so another row has to tell,
// also one of another type.
func TestLaggingHistory(t *testing.T) {
	instances := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.HistoryInstanceOnly = "instances", true })
	for _, p := range append(personalities(), fhirtest.Aidbox(), instances) {
		for _, lag := range []time.Duration{3 * time.Second, 40 * time.Second} {
			t.Run(fmt.Sprintf("%s/%s", p.Name, lag), func(t *testing.T) {
				t.Parallel()
				inLag(t, p, lag, func(*exporter.Config) {}, func(t *testing.T, b *bubble) {
					put(t, b, "Observation/Obs-1", "w1")
					put(t, b, "Observation/Obs-2", "w1")
					<-time.After(45 * time.Second)
					put(t, b, "Observation/Obs-1", "w2")
					put(t, b, "Observation/Obs-2", "w2")
					beforeRead(b, "Condition", func() { // which is read first
						put(t, b, "Observation/Obs-2", "w3")
						put(t, b, "Observation/Obs-28", "w3")
						if !p.HistoryInstanceOnly {
							must(t, b.sample.Delete("Observation", "Obs-29"), b.sample.Delete("Condition", "Con-29"))
						}
					})
					sameAsOfT(t, b, b.finish(b.kickOff(kickoffOf(state.System, "Condition", "Observation"))))
				})
			})
		}
	}
}

// Ensure a row that is deleted when it was read is not replaced by what an older state of the history has of it.
func TestLaggingHistoryMakesNoRowOlder(t *testing.T) {
	inLag(t, fhirtest.Plain(), 40*time.Second, func(*exporter.Config) {}, func(t *testing.T, b *bubble) {
		put(t, b, "Observation/Obs-1", "w1")
		<-time.After(45 * time.Second)
		put(t, b, "Observation/Obs-1", "w2")
		b.link.hook = func(r *http.Request) {
			if r.URL.Query().Has("_elements") {
				_ = b.sample.Delete("Observation", "Obs-1") // it may be gone already
			}
		}
		sameAsOfT(t, b, b.finish(b.kickOff(ofObservations())))
	})
}

// Ensure a history that does not show in time what the search does ends the export, or is a hole that says so.
func TestHistoryThatNeverCatchesUp(t *testing.T) {
	instances := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.HistoryInstanceOnly = "instances", true })
	for _, p := range []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI(), instances} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/partial=%v", p.Name, partial), func(t *testing.T) {
				t.Parallel()
				inLag(t, p, 24*time.Hour, func(c *exporter.Config) { c.AllowPartial = partial }, func(t *testing.T, b *bubble) {
					beforeRead(b, "Observation", func() {
						for i := range 20 {
							put(t, b, fmt.Sprintf("Observation/Obs-%d", i+10), "w1")
						}
					})
					began := time.Now()
					job := b.finish(b.kickOff(kickoffOf(state.System, "Condition", "Observation")))
					if took := time.Since(began); took < 5*time.Minute || took > 7*time.Minute {
						t.Errorf("the export took %s", took)
					}
					const lags = "it lags behind the searches"
					switch {
					case !partial && (job.Status != state.Failed || job.Failure.Code != "incomplete" || !strings.Contains(job.Failure.Text, lags)):
						t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
					case partial && (job.Status != state.Completed || !says(job, lags)):
						t.Errorf("the export ended %s with the remarks %+v", job.Status, job.Issues)
					}
				})
			})
		}
	}
}

// Ensure a row that is expunged when a search has shown it is not waited for.
func TestExpungedRowIsNoLag(t *testing.T) {
	inLag(t, fhirtest.Plain(), 0, func(*exporter.Config) {}, func(t *testing.T, b *bubble) {
		beforeRead(b, "Observation", func() { put(t, b, "Observation/Obs-29", "w1") })
		gone := refusing(http.StatusNotFound, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/Obs-29") })
		b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/Observation/_history") {
				return gone(w, r)
			}
			_, err := w.Write([]byte(`{"resourceType":"Bundle","type":"history"}`))
			must(t, err)
			return true
		}}
		began := time.Now()
		if job := b.finish(b.kickOff(ofObservations())); job.Status != state.Completed || time.Since(began) > time.Minute {
			t.Errorf("the export ended %s after %s: %+v", job.Status, time.Since(began), job.Failure)
		}
	})
}
