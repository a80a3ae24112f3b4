package exporter_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure _until is an exclusive bound of what a resource was at T: neither what was written at it or after it is in the export,
// nor what such a resource was before, and no deletion at it or after it is named, also where the server gives deletions no time, or
// ignores every bound.
func TestUntil(t *testing.T) {
	for _, server := range append(personalities(), fhirtest.Aidbox(), fhirtest.Superset()) {
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, server, smallPages, func(*fhirtest.Server) {}, func(t *testing.T, b *bubble) {
				since := time.Now().Truncate(time.Second)
				at := func(after time.Duration) { <-time.After(time.Until(since.Add(after))) }
				put := func(ids ...string) {
					for _, id := range ids {
						must(t, b.sample.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":%q,"language":%q}`, id, time.Now())))
					}
				}
				remove := func(id string) { must(t, b.sample.Delete("Observation", id)) }
				put("old", "gone-before", "gone-at", "gone-after", "returned")
				at(20 * time.Second)
				put("between", "changed-after")
				remove("gone-before")
				remove("returned")
				at(40 * time.Second)
				put("at")
				remove("gone-at")
				at(41 * time.Second)
				put("after", "changed-after", "returned")
				remove("gone-after")
				at(4 * time.Minute)
				for _, whole := range []time.Duration{40 * time.Second, 40*time.Second - 500*time.Millisecond, 40*time.Second - time.Microsecond} {
					kickoff := system()
					kickoff.Since, kickoff.Until = since.Add(time.Second), since.Add(whole)
					job := b.finish(b.kickOff(kickoff))
					want := b.snapshot()
					for _, key := range []string{"old", "at", "after", "changed-after", "returned"} {
						delete(want, "Observation/"+key)
					}
					same(t, b.rows(job), want)
					if got := b.deleted(job); !slices.Equal(got, []string{"Observation/gone-before"}) {
						t.Errorf("named as deleted are %v, want the one before _until", got)
					}
				}
				kickoff := system()
				kickoff.Until = since.Add(24 * time.Hour)
				same(t, b.rows(b.finish(b.kickOff(kickoff))), b.snapshot())
			})
		})
	}
}

// Ensure what was changed after T is not exported as it is now where _until asks for less, on a server without history.
func TestUntilWithoutHistory(t *testing.T) {
	forgetful := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	inBubble(t, forgetful, smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		kickoff := kickoffOf(state.System)
		kickoff.Until = time.Now()
		want := b.snapshot()
		delete(want, "Observation/Obs-29")
		b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
		overtaken := b.overtakeOnce(t, "Observation", "Obs-29")
		job := b.finish(b.kickOff(kickoff))
		same(t, b.rows(job), want)
		if !*overtaken {
			t.Error("nothing was changed before it was read")
		}
		saysOf(t, job, "1 Observation resources that were changed after the transaction time are missing")
	})
}
