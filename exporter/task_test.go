package exporter_test

import (
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure Tasks are exported at both levels when they are named, with the Provenance of them, and that neither goes along when
// they are not: R4 has no Task in the compartment.
func TestTasks(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		for _, resource := range []string{
			`{"resourceType":"Patient","id":"p1"}`,
			`{"resourceType":"Patient","id":"p2"}`,
			`{"resourceType":"Task","id":"t1","for":{"reference":"Patient/p1"}}`,
			`{"resourceType":"Task","id":"t2","for":{"reference":"Patient/p2"}}`,
			`{"resourceType":"Task","id":"t3"}`,
			`{"resourceType":"Provenance","id":"of-p1","target":[{"reference":"Patient/p1"}]}`,
			`{"resourceType":"Provenance","id":"of-t1","target":[{"reference":"Task/t1"}]}`,
			`{"resourceType":"Provenance","id":"of-t2","target":[{"reference":"Task/t2"}]}`,
			`{"resourceType":"Provenance","id":"of-t3","target":[{"reference":"Task/t3"}]}`,
			group("g", member("Patient/p1")),
		} {
			at = at.Add(time.Second)
			must(t, s.PutAt([]byte(resource), at))
		}
	}
	for name, test := range map[string]struct {
		kickoff state.Kickoff
		want    string
	}{
		"patient":       {kickoffOf(state.Patient, "Task", "Provenance"), "Task/t1 Task/t2 Provenance/of-p1 Provenance/of-t1 Provenance/of-t2"},
		"group":         {kickoffOf(state.Group, "Task", "Provenance"), "Task/t1 Provenance/of-p1 Provenance/of-t1"},
		"group, alone":  {kickoffOf(state.Group, "Task"), "Task/t1"},
		"without types": {kickoffOf(state.Group), "Patient/p1 Provenance/of-p1"},
		"not named":     {kickoffOf(state.Patient, "Provenance"), "Provenance/of-p1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
				want, all := map[string]string{}, b.snapshot()
				for _, key := range strings.Fields(test.want) {
					want[key] = all[key]
				}
				same(t, b.rows(b.finish(b.kickOff(test.kickoff))), want)
			})
		})
	}
}
