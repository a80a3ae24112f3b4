package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/state"
)

// changeWhileSearched lets more than a page of Observations change before they are read, and calls late for each page but the
// first on which it is read what has changed, with a moment after T and before those changes.
func changeWhileSearched(t *testing.T, b *bubble, late func(early time.Time)) {
	t.Helper()
	var mu sync.Mutex
	pages := 0
	var early time.Time
	beforeRead(b, "Observation", func() {
		mu.Lock()
		defer mu.Unlock()
		early = time.Now().Add(-time.Millisecond) // the settle pause has passed
		for i := range 15 {
			put(t, b, fmt.Sprintf("Observation/Obs-%d", 14+i), "w1")
		}
		<-time.After(time.Second)
		put(t, b, "Observation/Obs-29", "w1")
	})
	read := b.link.hook
	b.link.hook = func(r *http.Request) {
		read(r)
		if !isRowPage(r) || !strings.HasSuffix(r.URL.Path, "/Observation") || strings.Contains(r.URL.RawQuery, "=lt") {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if pages++; pages > 1 {
			late(early)
		}
	}
}

// Ensure a row is found that a late commit moves back in time while it is read what has changed, to where that was read already.
func TestLateCommitWhileItIsReadWhatHasChanged(t *testing.T) {
	for _, history := range []string{"none", "of resources"} {
		for name, back := range map[string]time.Duration{"before T": 10 * time.Second, "after T": 0} {
			t.Run(history+"/"+name, func(t *testing.T) {
				t.Parallel()
				inBubble(t, histories()[history], smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
					probeBefore(b)
					var once sync.Once
					changeWhileSearched(t, b, func(early time.Time) {
						once.Do(func() {
							must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"w2"}`), early.Add(-back), time.Now()))
						})
					})
					job := b.finish(b.kickOff(ofObservations()))
					got := b.rows(job)
					if history == "of resources" || name == "before T" {
						if want := string(b.sample.AsOf(job.TransactionTime)["Observation/Obs-29"]); got["Observation/Obs-29"] != want {
							t.Errorf("the row is %q, want %q", got["Observation/Obs-29"], want)
						}
					}
					if len(got) != 30 {
						t.Errorf("%d rows, want 30", len(got))
					}
				})
			})
		}
	}
}

// Ensure a row is not left out that such a commit moves when it is known that it has changed, and it is to be included as it is now.
func TestLateCommitWhileItIsReadAsItIs(t *testing.T) {
	inBubble(t, histories()["none"], smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		probeBefore(b)
		var begins []string // of the pages on which it is read what has changed
		changeWhileSearched(t, b, func(time.Time) {})
		read := b.link.hook
		b.link.hook = func(r *http.Request) {
			read(r)
			if !isRowPage(r) || !strings.HasSuffix(r.URL.Path, "/Observation") || strings.Contains(r.URL.RawQuery, "=lt") {
				return
			}
			begins = append(begins, r.URL.Query().Get("_lastUpdated"))
			from, err := time.Parse("ge2006-01-02T15:04:05Z", begins[0])
			if err != nil {
				return
			}
			if t2 := from.Add(time.Minute).Format("ge2006-01-02T15:04:05Z"); len(begins) > 1 && begins[len(begins)-2] == t2 {
				must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"Obs-29","language":"w2"}`), from.Add(time.Minute+time.Millisecond), time.Now()))
			}
		}
		if got := b.rows(b.finish(b.kickOff(ofObservations()))); len(got) != 30 || !strings.Contains(got["Observation/Obs-29"], `"w2"`) {
			t.Errorf("%d rows, want 30; pages began at %v", len(got), begins)
		}
	})
}

// Ensure the export says so when no two readings of what has changed agree, and that a strict one ends.
func TestReadingsThatNeverAgree(t *testing.T) {
	for _, mode := range []exporter.WithoutHistory{exporter.IncludeCurrent, exporter.Strict} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) { smallPages(c); c.WithoutHistory = mode }
			inBubble(t, histories()["of resources"], edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				probeBefore(b)
				n := 0
				changeWhileSearched(t, b, func(early time.Time) {
					n++
					must(t, b.sample.PutLate(fmt.Appendf(nil, `{"resourceType":"Observation","id":"late-%d"}`, n), early, time.Now()))
				})
				job := b.finish(b.kickOff(ofObservations()))
				if failed := job.Status == state.Failed; failed != (mode == exporter.Strict) || failed && job.Failure.Code != "incomplete" {
					t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
				}
				if mode != exporter.Strict && !says(job, "writes that showed late kept moving Observation resources") {
					t.Errorf("the remarks are %+v", job.Issues)
				}
				if n < 5 || n > 20 {
					t.Errorf("%d pages were read", n)
				}
			})
		})
	}
}
