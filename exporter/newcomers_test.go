package exporter_test

import (
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure an increment holds the whole record of a member who has come since, that it says who has gone, and that the others'
// older resources stay out of it.
func TestNewMembersGetTheirWholeRecord(t *testing.T) {
	for _, personality := range append(personalities(), with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true })) {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			fill := clinic(t, 8, 4, group("g", member("Patient/p1"), member("Patient/p2"), member("Group/h")), group("h", member("Patient/p3")))
			inBubble(t, personality, smallPages, func(s *fhirtest.Server) {
				fill(s)
				must(t, s.PutAt([]byte(`{"resourceType":"Provenance","id":"of-i5","target":[{"reference":"Immunization/i5"}]}`), time.Now().Add(-time.Hour)),
					s.PutAt([]byte(`{"resourceType":"Provenance","id":"of-i1","target":[{"reference":"Immunization/i1"}]}`), time.Now().Add(-time.Hour)))
			}, func(t *testing.T, b *bubble) {
				first := b.finish(b.kickOff(groupOf("g")))
				<-time.After(3 * time.Minute)
				must(t, b.sample.Put([]byte(group("h", member("Patient/p3"), member("Patient/p5")))),
					b.sample.Put([]byte(group("g", member("Patient/p2"), member("Group/h")))),
					b.sample.Put(dose("fresh", "p2")), b.sample.Put(dose("fresh1", "p1")))
				<-time.After(3 * time.Minute)
				all := b.snapshot()
				want := map[string]string{"Immunization/fresh": all["Immunization/fresh"], "Provenance/of-i5": all["Provenance/of-i5"]}
				for key, line := range ofPatients(t, all, "p5") {
					want[key] = line
				}
				kickoff := groupOf("g")
				kickoff.Since = first.TransactionTime
				job := b.finish(b.kickOff(kickoff))
				same(t, b.rows(job), want)
				if len(job.Issues) != 1 || !strings.Contains(job.Issues[0].Text, "1 patient has left the Group") {
					t.Errorf("remarks %+v, want one on the member who has gone", job.Issues)
				}
				for _, proof := range job.Proof {
					if proof.Exported > 0 && proof.Verdict != state.Proved {
						t.Errorf("%+v is not proved", proof)
					}
				}
			})
		})
	}
}

// Ensure that without a history a member's period alone makes him new, and that the export says so.
func TestNewMembersWithoutHistory(t *testing.T) {
	none := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	inBubble(t, none, smallPages, clinic(t, 8, 4, group("g", member("Patient/p1"))), func(t *testing.T, b *bubble) {
		first := b.finish(b.kickOff(groupOf("g")))
		<-time.After(3 * time.Minute)
		from := `,"period":{"start":"` + time.Now().Add(-time.Minute).UTC().Format(time.RFC3339) + `"}`
		must(t, b.sample.Put([]byte(group("g", member("Patient/p1"), member("Patient/p4", from), member("Patient/p6")))))
		<-time.After(3 * time.Minute)
		kickoff := groupOf("g", "Immunization", "Patient")
		kickoff.Since = first.TransactionTime
		job := b.finish(b.kickOff(kickoff))
		same(t, b.rows(job), ofPatients(t, b.snapshot(), "p4"))
		said := false
		for _, issue := range job.Issues {
			said = said || strings.Contains(issue.Text, "known by their period only")
		}
		if !said {
			t.Errorf("remarks %+v, want one on new members", job.Issues)
		}
	})
}
