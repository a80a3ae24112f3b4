package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// staff puts a Patient, whose observations name thirty practitioners.
func staff(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		must(t, s.PutAt([]byte(`{"resourceType":"Patient","id":"p1"}`), at))
		for i := range 30 {
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Practitioner","id":"dr%d","language":"en"}`, i), at))
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%d","subject":{"reference":"Patient/p1"},`+
				`"performer":[{"reference":"Practitioner/dr%d"}]}`, i, i), at.Add(time.Duration(i)*time.Second)))
		}
	}
}

// practitioners is how many Practitioners there are among rows.
func practitioners(rows map[string]string) (n int) {
	for key := range rows {
		if strings.HasPrefix(key, "Practitioner/") {
			n++
		}
	}
	return n
}

// proofOf returns the proof of a type.
func proofOf(job *state.Job, typ string) state.Proof {
	for _, proof := range job.Proof {
		if proof.Type == typ {
			return proof
		}
	}
	return state.Proof{}
}

// Ensure trouble with a referenced type is handled as a walk handles it: no other type suffers, lists are halved, a broken row is a
// hole of one row, and a hole fails the export unless partial ones are allowed.
func TestTroubleWithReferencedTypes(t *testing.T) {
	search := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Practitioner") }
	every := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/Practitioner") }
	long := func(r *http.Request) bool { return search(r) && strings.Count(r.URL.RawQuery, ",") >= 10 }
	holds := func(id string) func(*http.Request) bool {
		return func(r *http.Request) bool {
			ids := strings.Split(r.URL.Query().Get("_id"), ",")
			for _, one := range ids {
				if one == id {
					return true
				}
			}
			return strings.HasSuffix(r.URL.Path, "/Practitioner/"+id)
		}
	}
	for name, test := range map[string]struct {
		status int
		match  func(*http.Request) bool
		got    int
		// code is that of the hole, or of the remark where the export completes anyway; empty for neither.
		code    string
		hole    bool
		verdict state.Verdict
	}{
		"not offered":      {404, search, 0, "not-supported", false, state.Proved},
		"forbidden":        {403, every, 0, "forbidden", true, state.Incomplete},
		"no search by _id": {400, search, 30, "", false, state.Unverified},
		"400 for long":     {400, long, 30, "", false, state.Unverified},
		"413 for long":     {413, long, 30, "", false, state.Unverified},
		"414 for long":     {414, long, 30, "", false, state.Unverified},
		"broken row":       {500, holds("dr7"), 29, "exception", true, state.Incomplete},
		"broken type":      {500, every, 0, "exception", true, state.Incomplete},
	} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/partial %v", name, partial), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.AllowPartial = partial }
				inBubble(t, fhirtest.Plain(), edit, staff(t), func(t *testing.T, b *bubble) {
					b.finish(b.kickOff(state.Kickoff{Level: state.System, Types: []string{"Patient"}})) // the probes are over
					b.link.handler = &altered{sample: b.link.handler, before: status(test.status, -1, nil, test.match)(b)}
					job := b.finish(b.kickOff(kickoffOf(state.Patient)))
					if test.hole && !partial {
						if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Practitioner") {
							t.Errorf("%s %+v, want a failure that names the type", job.Status, job.Failure)
						}
						return
					}
					rows := b.rows(job)
					if n := practitioners(rows); n != test.got || len(rows) != 31+n {
						t.Errorf("%d rows, %d of them practitioners, want %d beside 31", len(rows), n, test.got)
					}
					if got := proofOf(job, "Practitioner").Verdict; got != test.verdict {
						t.Errorf("verdict %s, want %s", got, test.verdict)
					}
					if said := fmt.Sprint(job.Issues); test.code != "" && !strings.Contains(said, test.code) || test.code == "" && len(job.Issues) > 0 {
						t.Errorf("the remarks are %s, want code %q", said, test.code)
					}
				})
			})
		}
	}
}

// Ensure a referenced resource that changed after T follows the setting where there is no history, and is never passed over in silence.
func TestReferencedThatChangedWithoutHistory(t *testing.T) {
	server := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	for setting, want := range map[exporter.WithoutHistory]int{exporter.IncludeCurrent: 30, exporter.OmitChanged: 29, exporter.Strict: -1} {
		t.Run(string(setting), func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) { smallPages(c); c.WithoutHistory = setting }
			inBubble(t, server, edit, staff(t), func(t *testing.T, b *bubble) {
				changed := false
				b.link.hook = func(r *http.Request) {
					if !changed && strings.HasSuffix(r.URL.Path, "/Practitioner") && strings.Contains(r.URL.Query().Get("_id"), "dr7") {
						changed = true
						must(t, b.sample.Put([]byte(`{"resourceType":"Practitioner","id":"dr7","language":"fr"}`)),
							b.sample.Put([]byte(`{"resourceType":"Practitioner","id":"dr99","language":"fr"}`)))
					}
				}
				job := b.finish(b.kickOff(kickoffOf(state.Patient)))
				if want < 0 {
					if job.Status != state.Failed || job.Failure.Code != "incomplete" {
						t.Errorf("%s %+v, want a failure", job.Status, job.Failure)
					}
					return
				}
				if n := practitioners(b.rows(job)); n != want {
					t.Errorf("%d practitioners, want %d", n, want)
				}
				if said := fmt.Sprint(job.Issues); !strings.Contains(said, "1 referenced Practitioner") {
					t.Errorf("the remarks are %s, want one on the practitioner", said)
				}
				if proof := proofOf(job, "Practitioner"); proof.Expected != -1 || proof.Verdict == state.Proved {
					t.Errorf("proof %+v claims what was not shown", proof)
				}
			})
		})
	}
}

// Ensure references are followed two steps whatever the types are called.
func TestReferencesAreFollowedTwoSteps(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		for _, resource := range []string{
			`{"resourceType":"Organization","id":"parent"}`,
			`{"resourceType":"Organization","id":"clinic","partOf":{"reference":"Organization/parent"}}`,
			`{"resourceType":"Location","id":"room","managingOrganization":{"reference":"Organization/clinic"}}`,
			`{"resourceType":"Patient","id":"p1"}`,
			`{"resourceType":"Encounter","id":"e1","subject":{"reference":"Patient/p1"},"location":[{"location":{"reference":"Location/room"}}]}`,
		} {
			at = at.Add(time.Second)
			must(t, s.PutAt([]byte(resource), at))
		}
	}
	inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
		want := b.snapshot()
		delete(want, "Organization/parent")
		same(t, b.rows(b.finish(b.kickOff(kickoffOf(state.Patient)))), want)
	})
}
