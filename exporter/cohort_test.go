package exporter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// groupOf is the kick-off of an export of one Group.
func groupOf(id string, types ...string) state.Kickoff {
	return state.Kickoff{Level: state.Group, Group: id, Types: types, Base: "http://public/fhir"}
}

// clinic puts patients with doses each, written in turns, and a Group of the first members of them.
func clinic(t *testing.T, patients, doses int, groups ...string) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		begin := time.Now().Add(-2 * time.Hour)
		put := func(at time.Time, format string, args ...any) {
			if err := s.PutAt(fmt.Appendf(nil, format, args...), at); err != nil {
				t.Fatal(err)
			}
		}
		for p := range patients {
			put(begin, `{"resourceType":"Patient","id":"p%d"}`, p)
		}
		for i := range patients * doses {
			at := begin.Add(time.Minute + time.Duration(i)*3*time.Second)
			put(at, `{"resourceType":"Immunization","id":"i%d","patient":{"reference":"Patient/p%d"}}`, i, i%patients)
		}
		for _, group := range groups {
			put(begin, "%s", group)
		}
	}
}

// group writes a Group resource with members given as JSON.
func group(id string, members ...string) string {
	return fmt.Sprintf(`{"resourceType":"Group","id":%q,"type":"person","actual":true,"member":[%s]}`, id, strings.Join(members, ","))
}

func member(reference string, more ...string) string {
	return fmt.Sprintf(`{"entity":{"reference":%q}%s}`, reference, strings.Join(more, ""))
}

// ofPatients picks the rows that name one of the patients, by looking at every reference; of Patients those themselves.
func ofPatients(t *testing.T, rows map[string]string, patients ...string) map[string]string {
	t.Helper()
	picked := map[string]string{}
	for key, line := range rows {
		typ, id, _ := strings.Cut(key, "/")
		switch typ {
		case "Patient":
			if slices.Contains(patients, id) {
				picked[key] = line
			}
			continue
		case "Group", "Organization", "Practitioner", "Location", "Medication":
			continue // nobody's compartment; a Group is never in another's export
		}
		var tree any
		if err := json.Unmarshal([]byte(line), &tree); err != nil {
			t.Fatal(err)
		}
		if names(tree, patients) {
			picked[key] = line
		}
	}
	return picked
}

// names tells whether a reference anywhere in the tree leads to one of the patients.
func names(tree any, patients []string) bool {
	switch node := tree.(type) {
	case []any:
		return slices.ContainsFunc(node, func(v any) bool { return names(v, patients) })
	case map[string]any:
		if reference, ok := node["reference"].(string); ok {
			return slices.ContainsFunc(patients, func(id string) bool { return reference == "Patient/"+id })
		}
		return slices.ContainsFunc(slices.Collect(maps.Values(node)), func(v any) bool { return names(v, patients) })
	}
	return false
}

// Ensure a Group's export holds who is a member at T: also by nesting, also by an absolute reference, and nobody else.
func TestGroupMembership(t *testing.T) {
	ended, open := `,"period":{"end":"1990-01-01"}`, `,"period":{"start":"1990-01-01"}`
	for _, test := range []struct {
		name   string
		groups []string
		want   []string
	}{
		{"empty exports nothing", []string{group("g")}, nil},
		{"one patient", []string{group("g", member("Patient/p1"))}, []string{"p1"}},
		{"inactive is left out", []string{group("g", member("Patient/p1"), member("Patient/p2", `,"inactive":true`))}, []string{"p1"}},
		{"period", []string{group("g", member("Patient/p1", ended), member("Patient/p2", open))}, []string{"p2"}},
		{"nested", []string{group("g", member("Group/h"), member("Patient/p1")), group("h", member("Patient/p3"))}, []string{"p1", "p3"}},
		{"nested in a circle", []string{group("g", member("Group/h")), group("h", member("Group/g"), member("Patient/p3"))}, []string{"p3"}},
		{"absolute", []string{group("g", member("http://public/fhir/Patient/p1"))}, []string{"p1"}},
		{"another server's", []string{group("g", member("http://elsewhere.example/fhir/Patient/p1"), member("Patient/p4"))}, []string{"p4"}},
		{"no patients among them", []string{group("g", member("Practitioner/p1"), member("Device/p2"))}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, fhirtest.HAPI(), smallPages, clinic(t, 6, 4, test.groups...), func(t *testing.T, b *bubble) {
				want := ofPatients(t, b.snapshot(), test.want...)
				same(t, b.rows(b.finish(b.kickOff(groupOf("g")))), want)
			})
		})
	}
}

// Ensure lists of members are asked for where that is cheaper, and that the result is the same also after a crash.
func TestListsOfMembers(t *testing.T) {
	fill := clinic(t, 20, 25, group("g", member("Patient/p3"), member("Patient/p7")))
	for _, personality := range personalities() {
		for _, killAt := range []int64{0, 1, 2, 4, 5} { // pages of lists
			t.Run(fmt.Sprintf("%s/%d", personality.Name, killAt), func(t *testing.T) {
				t.Parallel()
				inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
					want := ofPatients(t, b.snapshot(), "p3", "p7")
					var reached <-chan struct{}
					var pages atomic.Int64
					frozen := make(chan struct{})
					b.link.hook = func(r *http.Request) {
						if isRowPage(r) && r.URL.Query().Has("patient") && pages.Add(1) == killAt {
							reached = b.events.freeze(1)
							close(frozen)
						}
					}
					id := b.kickOff(groupOf("g", "Immunization", "Patient"))
					if killAt > 0 {
						<-frozen
						<-reached
						b.resume(true)
					}
					same(t, b.rows(b.finish(id)), want)
					lists := 0
					for _, r := range b.sample.Requests() {
						if strings.Contains(r.RawQuery, "patient=Patient/p3,Patient/p7") && !strings.Contains(r.RawQuery, "_summary") {
							lists++
						}
					}
					if lists == 0 {
						t.Error("no list of members was asked for")
					}
				})
			})
		}
	}
}

// Ensure a row that named a Patient before the Patient existed is exported: the server has not indexed its reference.
func TestReferenceToAPatientWhoCameLater(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		at := time.Now().Add(-3 * time.Hour)
		if err := s.PutAt([]byte(`{"resourceType":"Immunization","id":"early","patient":{"reference":"Patient/p3"}}`), at); err != nil {
			t.Fatal(err)
		}
		clinic(t, 20, 25, group("g", member("Patient/p3"), member("Patient/p7")))(s)
	}
	inBubble(t, fhirtest.HAPI(), smallPages, fill, func(t *testing.T, b *bubble) {
		want := ofPatients(t, b.snapshot(), "p3", "p7")
		got := b.rows(b.finish(b.kickOff(groupOf("g"))))
		same(t, got, want)
		if got["Immunization/early"] == "" {
			t.Error("the early row is missing")
		}
	})
}

// Ensure each level, with and without _type and _since, gives on every server what the compartments say.
func TestLevels(t *testing.T) {
	everybody := make([]string, 12)
	for i := range everybody {
		everybody[i] = fmt.Sprintf("p%d", i)
	}
	n := 0
	for _, personality := range personalities() {
		for _, level := range []state.Level{state.System, state.Patient, state.Group} {
			for _, types := range [][]string{nil, {"Immunization"}} {
				for _, since := range []time.Duration{0, 110 * time.Minute} {
					if n++; sparse(n) {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%v/%s", personality.Name, level, types, since), func(t *testing.T) {
						t.Parallel()
						fill := func(s *fhirtest.Server) {
							clinic(t, 12, 30, group("g", member("Patient/p2"), member("Patient/p5")))(s)
							spread(t, s, "Organization", 3, time.Second, time.Hour)
						}
						inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
							kickoff := state.Kickoff{Level: level, Types: types, Base: "http://public/fhir"}
							want := b.snapshot()
							switch level {
							case state.Patient:
								groups := maps.Clone(want)
								want = ofPatients(t, want, everybody...)
								want["Group/g"] = groups["Group/g"] // its members' compartments hold it
							case state.Group:
								kickoff.Group = "g"
								want = ofPatients(t, want, "p2", "p5")
							}
							if since > 0 {
								kickoff.Since = time.Now().Add(-since).UTC()
							}
							maps.DeleteFunc(want, func(key, line string) bool {
								typ, _, _ := strings.Cut(key, "/")
								return types != nil && !slices.Contains(types, typ) || !updated(t, line).After(kickoff.Since)
							})
							same(t, b.rows(b.finish(b.kickOff(kickoff))), want)
						})
					})
				}
			}
		}
	}
}

func updated(t *testing.T, line string) time.Time {
	t.Helper()
	var resource struct {
		Meta struct{ LastUpdated time.Time }
	}
	if err := json.Unmarshal([]byte(line), &resource); err != nil {
		t.Fatal(err)
	}
	return resource.Meta.LastUpdated
}
