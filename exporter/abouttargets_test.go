package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// visits puts three Patients with encounters, and Provenance of all of them.
func visits(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		at := time.Now().Add(-2 * time.Hour)
		put := func(format string, args ...any) {
			at = at.Add(time.Second)
			must(t, s.PutAt(fmt.Appendf(nil, format, args...), at))
		}
		for p := range 3 {
			put(`{"resourceType":"Patient","id":"p%d"}`, p)
			put(`{"resourceType":"Provenance","id":"of-p%d","target":[{"reference":"Patient/p%d"}]}`, p, p)
			for e := range 60 {
				put(`{"resourceType":"Encounter","id":"e%d-%d","subject":{"reference":"Patient/p%d"}}`, p, e, p)
				put(`{"resourceType":"Provenance","id":"of-e%d-%d","target":[{"reference":"Encounter/e%d-%d"},{"reference":"Patient/p%d"}]}`, p, e, p, e, (p+1)%3)
			}
		}
		put(`{"resourceType":"Provenance","id":"of-nobody","target":[{"reference":"Organization/x"}]}`)
		put("%s", group("g", member("Patient/p0")))
	}
}

// wantsPatients is a server that wants a Patient in each search.
func wantsPatients(name string, edit func(*fhirtest.Personality)) fhirtest.Personality {
	return with(fhirtest.Plain(), func(p *fhirtest.Personality) {
		p.Name, p.RequirePatient = name, true
		edit(p)
	})
}

// Ensure Provenance of all that the export holds goes along where the server wants a Patient in each search, over a crash and with
// lists that are too long for it, too.
func TestProvenanceByTargets(t *testing.T) {
	for _, server := range []fhirtest.Personality{
		wantsPatients("by target", func(p *fhirtest.Personality) { p.ProvenanceByTarget = true }),
		wantsPatients("short lists", func(p *fhirtest.Personality) { p.ProvenanceByTarget, p.MaxOrValues = true, 7 }),
		wantsPatients("included", func(p *fhirtest.Personality) { p.RevIncludes = true }),
		fhirtest.Oracle(), fhirtest.Epic(),
	} {
		for _, level := range []state.Level{state.Patient, state.Group} {
			t.Run(server.Name+"/"+string(level), func(t *testing.T) {
				t.Parallel()
				inBubble(t, server, smallPages, visits(t), func(t *testing.T, b *bubble) {
					want := map[string]string{}
					for key, line := range b.snapshot() {
						mine := strings.HasPrefix(key, "Encounter/e0-") || key == "Patient/p0" || key == "Provenance/of-p0" ||
							strings.HasPrefix(key, "Provenance/of-e0-") || strings.HasPrefix(key, "Provenance/of-e2-")
						if mine || level == state.Patient && !strings.HasPrefix(key, "Group/") && key != "Provenance/of-nobody" {
							want[key] = line
						}
					}
					kickoff := kickoffOf(level, "Encounter", "Patient", "Provenance")
					frozen := b.events.freezeWhen(func(name string) bool {
						return strings.Contains(name, "target=Encounter/e0-5") || strings.Contains(name, "Encounter?_id=e0-5") && strings.Contains(name, "_revinclude")
					})
					id := b.kickOff(kickoff)
					select {
					case <-frozen:
						b.resume(true)
					case <-time.After(time.Hour):
						t.Fatal("it is not asked for by targets")
					}
					same(t, b.rows(b.finish(id)), want)
				})
			})
		}
	}
}

// Ensure the export says so when a server gives Provenance of Patients only, or only that of what the export holds.
func TestProvenanceThatCannotBeFound(t *testing.T) {
	for name, test := range map[string]struct {
		server fhirtest.Personality
		types  []string
		since  bool
		says   string
	}{
		"patients only": {wantsPatients("", func(*fhirtest.Personality) {}), nil, false, "Provenance of Patients only"},
		"_type":         {wantsPatients("", func(p *fhirtest.Personality) { p.RevIncludes = true }), []string{"Provenance"}, false, "does not hold"},
		"_since":        {wantsPatients("", func(p *fhirtest.Personality) { p.ProvenanceByTarget = true }), nil, true, "does not hold"},
		"all":           {wantsPatients("", func(p *fhirtest.Personality) { p.ProvenanceByTarget = true }), nil, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := with(test.server, func(p *fhirtest.Personality) { p.Types = []string{"Encounter", "Patient", "Provenance"} })
			inBubble(t, server, smallPages, visits(t), func(t *testing.T, b *bubble) {
				kickoff := kickoffOf(state.Patient, test.types...)
				if test.since {
					kickoff.Since = time.Now().Add(-time.Hour)
				}
				job := b.finish(b.kickOff(kickoff))
				if job.Status != state.Completed {
					t.Fatalf("%s %+v", job.Status, job.Failure)
				}
				said := fmt.Sprint(job.Issues)
				if test.says == "" && strings.Contains(said, "Provenance") || !strings.Contains(said, test.says) {
					t.Errorf("the remarks are %s, want one that says: %q", said, test.says)
				}
			})
		})
	}
}

// Ensure the Provenance of an increment is kept when its target changes after T and there is no history: the target is judged as it is
// now, and the export says so.
func TestProvenanceOfATargetThatChanges(t *testing.T) {
	server := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	inBubble(t, server, smallPages, ward(t), func(t *testing.T, b *bubble) {
		first := b.finish(b.kickOff(groupOf("g")))
		<-time.After(time.Minute)
		must(t, b.sample.Put([]byte(`{"resourceType":"Provenance","id":"new","target":[{"reference":"Observation/o1"}]}`)))
		<-time.After(time.Minute)
		kickoff := groupOf("g", "Provenance")
		kickoff.Since = first.TransactionTime
		changed := false
		b.link.hook = func(r *http.Request) {
			if !changed && strings.HasSuffix(r.URL.Path, "/Provenance") && r.URL.Query().Get("_count") == "10" {
				changed = true
				must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"o1","language":"fr","subject":{"reference":"Patient/p1"}}`)))
			}
		}
		job := b.finish(b.kickOff(kickoff))
		rows := b.rows(job)
		if !changed || rows["Provenance/new"] == "" || !strings.Contains(fmt.Sprint(job.Issues), "what they are now") {
			t.Errorf("changed: %v, %d rows, remarks %+v", changed, len(rows), job.Issues)
		}
	})
}
