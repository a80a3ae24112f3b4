package exporter_test

import (
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure the parameter patient narrows an export to those Patients, and that a stranger among them ends the job without being named.
func TestPatientsThatAreNamed(t *testing.T) {
	inactive := `,"inactive":true`
	members := group("g", member("Patient/p1"), member("Patient/p2"), member("Patient/p3", inactive))
	for _, test := range []struct {
		name     string
		level    state.Level
		patients []string
		code     string
	}{
		{"one", state.Patient, []string{"p1"}, ""},
		{"some", state.Patient, []string{"p0", "p4", "p5"}, ""},
		{"an unknown one", state.Patient, []string{"p1", "zz-unknown"}, "not-found"},
		{"a member", state.Group, []string{"p2"}, ""},
		{"all members", state.Group, []string{"p1", "p2"}, ""},
		{"no member", state.Group, []string{"p1", "p4"}, "invalid"},
		{"an inactive member", state.Group, []string{"p3"}, "invalid"},
		{"an unknown member", state.Group, []string{"zz-unknown"}, "invalid"},
	} {
		for _, server := range []fhirtest.Personality{fhirtest.HAPI(), fhirtest.Plain(), with(fhirtest.Plain(), func(p *fhirtest.Personality) {
			p.Name, p.RequirePatient = "wants patients", true
		})} {
			t.Run(test.name+"/"+server.Name, func(t *testing.T) {
				t.Parallel()
				inBubble(t, server, smallPages, clinic(t, 6, 4, members), func(t *testing.T, b *bubble) {
					kickoff := kickoffOf(test.level, "Immunization", "Patient")
					kickoff.Patients = test.patients
					job := b.finish(b.kickOff(kickoff))
					if test.code == "" {
						same(t, b.rows(job), ofPatients(t, b.snapshot(), test.patients...))
						return
					}
					if job.Status != state.Failed || job.Failure.Status != 400 || job.Failure.Code != test.code {
						t.Fatalf("the job ended %s: %+v, want 400 %s", job.Status, job.Failure, test.code)
					}
					for _, id := range test.patients {
						if strings.Contains(job.Failure.Text, id) {
							t.Errorf("the failure names a Patient: %s", job.Failure.Text)
						}
					}
				})
			})
		}
	}
}

// Ensure some Patients of many are asked for by lists, not by reading the types whole.
func TestFewNamedPatientsAreAskedForByLists(t *testing.T) {
	inBubble(t, fhirtest.Plain(), func(c *exporter.Config) { c.PageSize = 10 }, clinic(t, 60, 20), func(t *testing.T, b *bubble) {
		kickoff := kickoffOf(state.Patient, "Immunization")
		kickoff.Patients = []string{"p1"}
		job := b.finish(b.kickOff(kickoff))
		want := ofPatients(t, b.snapshot(), "p1")
		delete(want, "Patient/p1")
		same(t, b.rows(job), want)
		slices, err := b.store.Slices(t.Context(), job.ID)
		if err != nil || len(slices) == 0 || len(slices[0].Lists) == 0 {
			t.Errorf("slices %+v (%v), want lists", slices, err)
		}
	})
}

// Ensure an increment of a Patient who was deleted since _since names his deletion, and does not end for it.
func TestNamedPatientWhoIsGone(t *testing.T) {
	inBubble(t, fhirtest.HAPI(), smallPages, clinic(t, 3, 2), func(t *testing.T, b *bubble) {
		since := time.Now()
		<-time.After(time.Minute)
		must(t, b.sample.Delete("Patient", "p1"), b.sample.Delete("Patient", "p2"), b.sample.Delete("Immunization", "i1"))
		<-time.After(time.Minute)
		kickoff := kickoffOf(state.Patient)
		kickoff.Patients, kickoff.Since = []string{"p1"}, since
		job := b.finish(b.kickOff(kickoff))
		same(t, b.rows(job), map[string]string{})
		if got := strings.Join(b.deleted(job), " "); got != "Immunization/i1 Patient/p1" {
			t.Errorf("named as deleted are %s", got)
		}
	})
}
