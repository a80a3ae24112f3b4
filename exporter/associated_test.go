package exporter_test

import (
	"encoding/json"
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

const (
	latest   = "LatestProvenanceResources"
	relevant = "RelevantProvenanceResources"
)

// records puts three Patients with encounters, one of them a day later than the rest, and Provenance of all of them: of each
// Encounter three, of which the one recorded last was written first.
func records(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		at := time.Now().Add(-48 * time.Hour)
		put := func(format string, args ...any) {
			at = at.Add(time.Second)
			must(t, s.PutAt(fmt.Appendf(nil, format, args...), at))
		}
		for p := range 3 {
			put(`{"resourceType":"Patient","id":"p%d"}`, p)
			put(`{"resourceType":"Provenance","id":"of-p%d","target":[{"reference":"Patient/p%d"}],"recorded":"2001-01-01T00:00:00Z"}`, p, p)
			for e := range 12 {
				for n, recorded := range []string{"2003-01-01T00:00:00.5+02:00", "2002-12-31T22:00:00Z", "2001-05-05T00:00:00Z"} {
					put(`{"resourceType":"Provenance","id":"n%d-e%d-%d","target":[{"reference":"Encounter/e%d-%d/_history/1"}],"recorded":%q}`, n, p, e, p, e, recorded)
				}
				put(`{"resourceType":"Encounter","id":"e%d-%d","status":%q,"subject":{"reference":"Patient/p%d"}}`, p, e, []string{"finished", "planned"}[e%2], p)
			}
		}
		put(`{"resourceType":"Provenance","id":"of-two","target":[{"reference":"Patient/p0"},{"reference":"Encounter/e1-1"}],"recorded":"2002-01-01T00:00:00Z"}`)
		put(`{"resourceType":"Provenance","id":"of-nobody","target":[{"reference":"Organization/x"}],"recorded":"2002-01-01T00:00:00Z"}`)
		put(`{"resourceType":"Provenance","id":"of-another","target":[{"reference":"Provenance/of-p0"}],"recorded":"2002-01-01T00:00:00Z"}`)
		put("%s", group("g", member("Patient/p0")))
		at = time.Now().Add(-24 * time.Hour)
		put(`{"resourceType":"Encounter","id":"late","status":"finished","subject":{"reference":"Patient/p0"}}`)
	}
}

// withProvenance adds to the rows of an export the Provenance of each among all rows: the latest, or every one.
func withProvenance(t *testing.T, rows, all map[string]string, latestOnly bool) map[string]string {
	t.Helper()
	type found struct{ key, recorded string }
	best := map[string]found{}
	added := map[string]string{}
	for key, line := range rows {
		if !strings.HasPrefix(key, "Provenance/") {
			added[key] = line
		}
	}
	for key, line := range all {
		var about struct {
			Target   []struct{ Reference string }
			Recorded time.Time
		}
		if !strings.HasPrefix(key, "Provenance/") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &about); err != nil {
			t.Fatal(err)
		}
		for _, target := range about.Target {
			name, _, _ := strings.Cut(target.Reference, "/_history")
			if _, exported := rows[name]; !exported || strings.HasPrefix(name, "Provenance/") {
				continue
			}
			recorded := about.Recorded.UTC().Format("2006-01-02T15:04:05.000")
			if !latestOnly {
				added[key] = line
			} else if recorded > best[name].recorded {
				best[name] = found{key, recorded}
			}
		}
	}
	for _, one := range best {
		added[one.key] = all[one.key]
	}
	return added
}

// Ensure includeAssociatedData adds the Provenance of what is exported, all or the latest, and no other, whatever else narrows
// the export, over a crash, and while Provenance changes.
func TestAssociatedProvenance(t *testing.T) {
	n := 0
	for _, test := range []struct {
		name    string
		values  []string
		kickoff state.Kickoff
	}{
		{"latest", []string{latest}, state.Kickoff{}},
		{"relevant", []string{relevant}, state.Kickoff{}},
		{"both give more", []string{latest, relevant}, state.Kickoff{}},
		{"latest with _type", []string{latest}, state.Kickoff{Types: []string{"Encounter"}}},
		{"relevant with _typeFilter", []string{relevant}, state.Kickoff{
			Types: []string{"Encounter"}, Filters: []state.TypeFilter{{Type: "Encounter", Query: "status=finished"}},
		}},
		{"latest with _until", []string{latest}, state.Kickoff{Until: time.Date(1999, 12, 30, 12, 0, 0, 0, time.UTC)}},
		{"relevant with _since", []string{relevant}, state.Kickoff{Since: time.Date(1999, 12, 30, 12, 0, 0, 0, time.UTC)}},
	} {
		for _, server := range []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI(), fhirtest.Blaze()} {
			for _, level := range []state.Level{state.System, state.Patient, state.Group} {
				if n++; sparse(n) {
					continue
				}
				t.Run(test.name+"/"+server.Name+"/"+string(level), func(t *testing.T) {
					t.Parallel()
					edit := func(c *exporter.Config) { smallPages(c); c.MaxFileBytes = 1500 }
					inBubble(t, server, edit, records(t), func(t *testing.T, b *bubble) {
						<-time.After(10 * time.Second)
						all := b.snapshot()
						kickoff := test.kickoff
						kickoff.Level, kickoff.Base, kickoff.Associated = level, "http://public/fhir", test.values
						if level == state.Group {
							kickoff.Group = "g"
						}
						job := &state.Job{Kickoff: kickoff, TransactionTime: time.Now()}
						want := withProvenance(t, (&ledger{b.sample}).expected(t, job, []string{"p0", "p1", "p2"}), all, !slices.Contains(test.values, relevant))
						frozen := b.events.freezeWhen(func(name string) bool {
							return strings.HasPrefix(name, "before put") && strings.Contains(name, "Provenance.2")
						})
						changed := false
						b.link.hook = func(r *http.Request) {
							if !changed && strings.HasSuffix(r.URL.Path, "/Provenance") && r.URL.Query().Get("_sort") == "_lastUpdated" {
								changed = true
								must(t, b.sample.Put([]byte(`{"resourceType":"Provenance","id":"n0-e0-0","target":[{"reference":"Organization/x"}]}`)), b.sample.Delete("Provenance", "of-p0"))
							}
						}
						id := b.kickOff(kickoff)
						select {
						case <-frozen:
							b.resume(true)
						case <-time.After(30 * time.Minute):
							b.events.thaw()
						}
						done := b.finish(id)
						if !changed {
							t.Error("nothing was changed while Provenance was read")
						}
						same(t, b.rows(done), want)
						n := 0
						for key := range want {
							if strings.HasPrefix(key, "Provenance/") {
								n++
							}
						}
						for _, proof := range done.Proof {
							if proof.Type == "Provenance" && (int(proof.Exported) != n || proof.Replaced != 0) {
								t.Errorf("the account is %+v, want %d exported", proof, n)
							}
						}
					})
				})
			}
		}
	}
}
