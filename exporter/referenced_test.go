package exporter_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// ward puts two patients with what surrounds them: resources of nobody's compartment, and Provenance.
func ward(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		for _, resource := range []string{
			`{"resourceType":"Organization","id":"parent"}`,
			`{"resourceType":"Organization","id":"clinic","partOf":{"reference":"Organization/parent"}}`,
			`{"resourceType":"Organization","id":"other"}`,
			`{"resourceType":"Practitioner","id":"dr","language":"en"}`,
			`{"resourceType":"Practitioner","id":"nobody"}`,
			`{"resourceType":"PractitionerRole","id":"role","practitioner":{"reference":"Practitioner/dr2"},"organization":{"reference":"Organization/clinic"}}`,
			`{"resourceType":"Practitioner","id":"dr2"}`,
			`{"resourceType":"Medication","id":"pill","code":{"text":"a"}}`,
			`{"resourceType":"Device","id":"pump"}`,
			`{"resourceType":"Patient","id":"p1","generalPractitioner":[{"reference":"Practitioner/dr"}]}`,
			`{"resourceType":"Patient","id":"p2","managingOrganization":{"reference":"Organization/other"}}`,
			`{"resourceType":"Device","id":"implant","patient":{"reference":"Patient/p1"}}`,
			`{"resourceType":"Observation","id":"o1","subject":{"reference":"Patient/p1"},"device":{"reference":"Device/implant"},` +
				`"performer":[{"reference":"http://public/fhir/PractitionerRole/role"},{"reference":"Practitioner/gone"},{"reference":"#inside"}]}`,
			`{"resourceType":"Observation","id":"o2","subject":{"reference":"Patient/p2"},"device":{"reference":"Device/pump"}}`,
			`{"resourceType":"MedicationRequest","id":"m1","subject":{"reference":"Patient/p1"},"medicationReference":{"reference":"Medication/pill"}}`,
			`{"resourceType":"Provenance","id":"of-o1","target":[{"reference":"Observation/o1"}],"agent":[{"who":{"reference":"Practitioner/dr"}}]}`,
			`{"resourceType":"Provenance","id":"of-o2","target":[{"reference":"Observation/o2"},{"reference":"Organization/other"}]}`,
			`{"resourceType":"Provenance","id":"of-p1","target":[{"reference":"Patient/p1"}]}`,
			`{"resourceType":"Provenance","id":"of-clinic","target":[{"reference":"Organization/clinic"}]}`,
			group("g", member("Patient/p1")),
		} {
			at = at.Add(time.Second)
			must(t, s.PutAt([]byte(resource), at))
		}
	}
}

// Ensure an export of Patients holds what their resources refer to, two steps far, and the Provenance of all of it that is
// in the compartment; nothing that is only beside it.
func TestReferencedResourcesAndProvenance(t *testing.T) {
	patient := func(types ...string) state.Kickoff {
		return state.Kickoff{Level: state.Patient, Types: types, Base: "http://public/fhir"}
	}
	ofP1 := "Device/implant MedicationRequest/m1 Observation/o1 Patient/p1 Provenance/of-o1 Provenance/of-p1 "
	around := "Medication/pill Organization/clinic Practitioner/dr Practitioner/dr2 PractitionerRole/role"
	for name, test := range map[string]struct {
		kickoff state.Kickoff
		edit    func(*exporter.Config)
		want    string
	}{
		"group":     {kickoff: groupOf("g"), want: ofP1 + around},
		"switched":  {kickoff: groupOf("g"), edit: func(c *exporter.Config) { c.WithoutReferenced = true }, want: ofP1},
		"patient":   {kickoff: patient(), want: ofP1 + around + " Observation/o2 Patient/p2 Organization/other Device/pump Provenance/of-o2 Group/g"},
		"types":     {kickoff: groupOf("g", "Observation"), want: "Observation/o1"},
		"named":     {kickoff: groupOf("g", "Observation", "PractitionerRole"), want: "Observation/o1 PractitionerRole/role"},
		"targets":   {kickoff: groupOf("g", "Provenance"), want: "Provenance/of-o1 Provenance/of-p1"},
		"one depth": {kickoff: groupOf("g", "Patient", "Organization"), want: "Patient/p1"},
	} {
		for _, personality := range personalities() {
			t.Run(name+"/"+personality.Name, func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) {
					smallPages(c)
					if test.edit != nil {
						test.edit(c)
					}
				}
				inBubble(t, personality, edit, ward(t), func(t *testing.T, b *bubble) {
					want := map[string]string{}
					all := b.snapshot()
					for _, key := range strings.Fields(test.want) {
						want[key] = all[key]
					}
					changed := false
					b.link.hook = func(r *http.Request) {
						if changed || !strings.HasSuffix(r.URL.Path, "/Provenance/_history") && !strings.HasSuffix(r.URL.Path, "/Patient/_history") {
							return
						}
						changed = true // as of T it is what it was
						must(t, b.sample.Put([]byte(`{"resourceType":"Practitioner","id":"dr","language":"fr"}`)), b.sample.Delete("Medication", "pill"))
					}
					same(t, b.rows(b.finish(b.kickOff(test.kickoff))), want)
				})
			})
		}
	}
}

// Ensure types that are withheld are no part of an export: not as what is read, not as what is referred to, not as Provenance
// and not as deletions.
func TestWithheldTypes(t *testing.T) {
	for name, kickoff := range map[string]state.Kickoff{"group": groupOf("g"), "system": system()} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, fhirtest.Plain(), smallPages, ward(t), func(t *testing.T, b *bubble) {
				kickoff.Withheld = []string{"Observation", "Practitioner", "Provenance"}
				first := b.finish(b.kickOff(kickoff))
				rows := b.rows(first)
				for key := range rows {
					if typ, _, _ := strings.Cut(key, "/"); slices.Contains(kickoff.Withheld, typ) {
						t.Errorf("the export holds %s", key)
					}
				}
				if rows["Patient/p1"] == "" || rows["Medication/pill"] == "" {
					t.Errorf("%d rows: what is not withheld is missing", len(rows))
				}
				<-time.After(time.Minute)
				must(t, b.sample.Delete("Observation", "o1"), b.sample.Delete("MedicationRequest", "m1"))
				<-time.After(time.Minute)
				kickoff.Since = first.TransactionTime
				if got := b.deleted(b.finish(b.kickOff(kickoff))); !slices.Equal(got, []string{"MedicationRequest/m1"}) {
					t.Errorf("deleted: %q", got)
				}
			})
		})
	}
}

// Ensure the Provenance of an increment is found although its targets are older.
func TestProvenanceOfOlderTargets(t *testing.T) {
	inBubble(t, fhirtest.HAPI(), smallPages, ward(t), func(t *testing.T, b *bubble) {
		first := b.finish(b.kickOff(groupOf("g")))
		<-time.After(time.Minute)
		must(t, b.sample.Put([]byte(`{"resourceType":"Provenance","id":"new","target":[{"reference":"Observation/o1"}]}`)),
			b.sample.Put([]byte(`{"resourceType":"Provenance","id":"new2","target":[{"reference":"Observation/o2"}]}`)))
		<-time.After(time.Minute)
		kickoff := groupOf("g")
		kickoff.Since = first.TransactionTime
		rows := b.rows(b.finish(b.kickOff(kickoff)))
		if len(rows) != 1 || rows["Provenance/new"] == "" {
			t.Errorf("got %d rows, want the new Provenance of the member alone", len(rows))
		}
	})
}

// Ensure a kill anywhere in an export with references and Provenance changes nothing.
func TestKilledWithReferences(t *testing.T) {
	n := 0
	for at := int64(60); at < 240; at += 12 {
		if n++; sparse(n) {
			continue
		}
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			inBubble(t, fhirtest.Plain(), smallPages, ward(t), func(t *testing.T, b *bubble) {
				want := b.rows(b.finish(b.kickOff(groupOf("g"))))
				if len(want) < 10 {
					t.Fatalf("only %d rows", len(want))
				}
				frozen := b.events.freeze(at)
				id := b.kickOff(groupOf("g"))
				select {
				case <-frozen:
					b.resume(true)
				case <-time.After(time.Hour):
					b.events.thaw()
				}
				same(t, b.rows(b.finish(id)), want)
			})
		})
	}
}
