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

// oddIDs are ids of each form that the data type allows (FHIR, data type id): numbers, UUIDs, dots, signs alone, leading
// zeros, the longest one, and such as differ in case only.
var oddIDs = []string{
	"1", "0", "01", "123456789012345678901234567890", "5f3b6c1e-7d2a-4c57-9a51-0d2b8f0c1e44", "a.b.c", "-", ".x-", "A", "a", "aB", "Ab",
	strings.Repeat("z", 64), "1e3", "null", "true",
}

// Ensure resources are exported whatever form their ids have, at each level, read whole and by lists of members.
func TestIDsOfEveryForm(t *testing.T) {
	var members []string
	for _, id := range oddIDs {
		members = append(members, member("Patient/"+id))
	}
	fill := func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		for i, id := range oddIDs {
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":%q}`, id), at), // all in one instant
				s.PutAt(dose(id, id), at.Add(time.Duration(i)*time.Minute)))
		}
		clinic(t, 40, 10)(s)
		must(t, s.PutAt([]byte(group("g", members...)), at))
	}
	for _, personality := range personalities() {
		for _, strategy := range []string{exporter.StrategyCrawl, exporter.StrategyLists} {
			t.Run(personality.Name+"/"+strategy, func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.Strategy = strategy }
				inBubble(t, personality, edit, fill, func(t *testing.T, b *bubble) {
					all := b.snapshot()
					same(t, b.rows(b.finish(b.kickOff(groupOf("g", "Patient", "Immunization")))), ofPatients(t, all, oddIDs...))
					if strategy == exporter.StrategyCrawl {
						same(t, b.rows(b.finish(b.kickOff(system()))), all)
						patients := b.rows(b.finish(b.kickOff(state.Kickoff{Level: state.Patient, Types: []string{"Patient"}, Base: "http://public/fhir"})))
						if len(patients) != len(oddIDs)+40 {
							t.Errorf("%d Patients, want %d", len(patients), len(oddIDs)+40)
						}
					}
				})
			})
		}
	}
}
