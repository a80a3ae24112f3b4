package exporter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// refused says of the servers of which not every level can be exported what the failure names.
var refused = map[string]string{
	// They want a Patient in every search, and what names one under another parameter only cannot be found.
	"epic/system": "cannot be asked", "epic/patient": "cannot be asked", "epic/group": "cannot be asked",
	"oracle/system": "cannot be asked", "oracle/patient": "cannot be asked", "oracle/group": "cannot be asked",
}

// Ensure every product at rest is exported exactly, at each level, or the export fails and says what it cannot read.
func TestEveryPersonalityAtRest(t *testing.T) {
	for _, personality := range fhirtest.All() {
		for level, kickoff := range map[string]state.Kickoff{
			"system": system(), "patient": {Level: state.Patient, Base: "http://public/fhir"}, "group": groupOf("g"),
		} {
			name := personality.Name + "/" + level
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { c.PageSize, c.Settle = 20, 0 }
				fill := func(s *fhirtest.Server) {
					clinic(t, 30, 4, group("g", member("Patient/p1"), member("Patient/p4"), member("Patient/p9")))(s)
					burst(t, s, "Observation", 45, time.Hour)
					s.CatchUp()
				}
				inBubble(t, personality, edit, fill, func(t *testing.T, b *bubble) {
					want := b.snapshot()
					switch level {
					case "patient":
						want = ofPatients(t, want, patientsOf(30)...)
					case "group":
						want = ofPatients(t, want, "p1", "p4", "p9")
					}
					job := b.finish(b.kickOff(kickoff))
					if text := refused[name]; text != "" {
						if job.Status != state.Failed || !strings.Contains(job.Failure.Text, text) {
							t.Errorf("%s %+v, want a failure that names %s", job.Status, job.Failure, text)
						}
						return
					}
					if level == "patient" {
						if row, ok := b.snapshot()["Group/g"]; ok {
							want["Group/g"] = row
						}
					}
					same(t, b.rows(job), want)
				})
			})
		}
	}
}

func patientsOf(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("p%d", i))
	}
	return ids
}
