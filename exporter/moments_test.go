package exporter_test

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure what was acknowledged before the kick-off is in the export, and that its transaction time says so.
func TestWriteJustBeforeTheKickoffIsExported(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, personality, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
				for _, part := range []time.Duration{0, 400 * time.Millisecond, 999 * time.Millisecond} {
					<-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Minute + part)))
					must(t, b.sample.Put([]byte(`{"resourceType":"Condition","id":"last"}`)))
					log := b.sample.Log()
					written := log[len(log)-1]
					job := b.finish(b.kickOff(system()))
					if job.TransactionTime.Before(written.Updated) {
						t.Errorf("the transaction time is %s before a write that came before the kick-off", written.Updated.Sub(job.TransactionTime))
					}
					if b.rows(job)["Condition/last"] != string(written.Body) {
						t.Errorf("a write that came %s into the second of the kick-off is not in the export", part)
					}
				}
			})
		})
	}
}

// Ensure nothing is asked for before the second of T is over where lastUpdated has whole seconds: until then a write may still
// carry T.
func TestWholeSecondsAreOverBeforeTheyAreRead(t *testing.T) {
	edit := func(c *exporter.Config) { smallPages(c); c.Settle = time.Millisecond }
	inBubble(t, fhirtest.Blaze(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(system())) // the probes take longer than a second
		var sent []time.Time
		b.link.hook = func(*http.Request) { sent = append(sent, time.Now().Add(-latency)) }
		<-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Minute))) // T is asked for before it
		job := b.finish(b.kickOff(system()))
		sent = slices.DeleteFunc(sent, job.TransactionTime.After)
		if len(sent) == 0 || sent[0].Sub(job.TransactionTime) < time.Second {
			t.Errorf("the server is asked at %s after T = %s, want a second later", sent, job.TransactionTime)
		}
	})
}

// heldWrites are writes under way that end when done is closed.
type heldWrites struct {
	done   chan struct{}
	before time.Time
	settle time.Duration
}

func (w *heldWrites) Wait(ctx context.Context, before time.Time, settle time.Duration) error {
	w.before, w.settle = before, settle
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Ensure an export that knows the writes under way waits for those that T is to include, however long they take, and for
// nothing else.
func TestWritesInFlightAreAwaited(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			writes := &heldWrites{}
			edit := func(c *exporter.Config) {
				smallPages(c)
				writes.done = make(chan struct{}) // of the bubble
				c.Settle, c.Writes = 50*time.Minute, writes
			}
			inBubble(t, personality, edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				const under = 30 * time.Minute // longer than the history is behind
				late := time.Now().Add(under)
				must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"slow"}`), time.Now(), late))
				kicked := time.Now()
				id := b.kickOff(system())
				<-time.After(time.Until(late))
				b.sample.CatchUp()
				want := b.snapshot()
				close(writes.done)
				job := b.finish(id)
				same(t, b.rows(job), want)
				if took := job.Finished.Sub(kicked); took < under || took > under+10*time.Minute {
					t.Errorf("the export took %s, want %s and a little", took, under)
				}
				if writes.before.Before(job.TransactionTime) || writes.settle != 50*time.Minute {
					t.Errorf("waited for the writes before %s after T, with a pause of %s", writes.before.Sub(job.TransactionTime), writes.settle)
				}
			})
		})
	}
}

// Ensure the pauses before an overloaded server is asked again grow, and differ from one export to the next: exports that were
// refused together do not come back together.
func TestPausesGrowAndDiffer(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(system()))
		sample := b.link.handler
		seen := map[time.Duration]bool{}
		const exports, tries = 3, 4
		for range exports {
			var asked []time.Time
			b.link.handler = &altered{sample: sample, before: func(w http.ResponseWriter, r *http.Request) bool {
				if !isRowPage(r) || len(asked) > tries {
					return false
				}
				if asked = append(asked, time.Now()); len(asked) > tries {
					return false
				}
				refuse(w, http.StatusServiceUnavailable)
				return true
			}}
			same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
			for i := range tries {
				pause := asked[i+1].Sub(asked[i]) - latency
				if least := time.Second << i / 2; pause < least || pause > 20*least {
					t.Errorf("pause %d is %s, want one of %s to %s", i+1, pause, least, 2*least)
				}
				seen[pause] = true
			}
		}
		if len(seen) < exports*tries {
			t.Errorf("%d pauses have only %d lengths", exports*tries, len(seen))
		}
	})
}

// Ensure T itself belongs to an export, and what was written the least moment later to the next one alone.
func TestWritesAtT(t *testing.T) {
	for later, personality := range map[time.Duration]fhirtest.Personality{
		500 * time.Microsecond: fhirtest.Aidbox(), time.Millisecond: fhirtest.Plain(), time.Second: fhirtest.Blaze(),
	} {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, personality, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(system())) // the probes are over
				id := b.kickOff(system())
				var at time.Time
				for at.IsZero() {
					<-time.After(100 * time.Millisecond)
					job, err := b.store.Get(t.Context(), id)
					must(t, err)
					at = job.TransactionTime
				}
				must(t, b.sample.PutAt([]byte(`{"resourceType":"Condition","id":"at"}`), at))
				must(t, b.sample.PutAt([]byte(`{"resourceType":"Condition","id":"later"}`), at.Add(later)))
				want := b.snapshot()["Observation/Obs-3"]
				must(t, b.sample.PutAt([]byte(`{"resourceType":"Observation","id":"Obs-3","language":"fr"}`), at.Add(later)))
				first := b.rows(b.finish(id))
				if first["Observation/Obs-3"] != want {
					t.Error("what was changed after T is not as it was at T")
				}
				next := system()
				next.Since = at
				second := b.rows(b.finish(b.kickOff(next)))
				if first["Condition/at"] == "" || first["Condition/later"] != "" || second["Condition/at"] != "" || second["Condition/later"] == "" {
					t.Errorf("in the first export at T %t, later %t, in the next one %t, %t", first["Condition/at"] != "",
						first["Condition/later"] != "", second["Condition/at"] != "", second["Condition/later"] != "")
				}
			})
		})
	}
}
