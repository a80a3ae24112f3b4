package exporter_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// filteredBy is the kick-off of a system export of Observations by filters.
func filteredBy(queries ...string) state.Kickoff {
	kickoff := kickoffOf(state.System, "Observation", "Condition")
	for _, query := range queries {
		kickoff.Filters = append(kickoff.Filters, state.TypeFilter{Type: "Observation", Query: query})
	}
	return kickoff
}

// readings puts sixty Observations, a third of them final, a third amended, and as many Conditions, by which nothing is filtered.
func readings(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		for p := range 2 {
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":"p%d"}`, p), time.Now().Add(-2*time.Hour)))
		}
		for i := range 60 {
			at := time.Now().Add(-time.Hour + time.Duration(i)*7*time.Second)
			status := []string{"final", "amended", "cancelled"}[i%3]
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%02d","status":%q,"subject":{"reference":"Patient/p%d"}}`, i, status, i%2), at),
				s.PutAt(fmt.Appendf(nil, `{"resourceType":"Condition","id":"c%02d"}`, i), at))
		}
	}
}

// overtakeOnce changes a row just before its type is read for the first time, and tells whether it did.
func (b *bubble) overtakeOnce(t *testing.T, typ, id string) *bool {
	changed := false
	b.link.hook = func(r *http.Request) {
		query := r.URL.Query()
		if !changed && strings.HasSuffix(r.URL.Path, "/"+typ) && query.Get("_sort") == "_lastUpdated" && query.Get("_count") != "1" {
			changed = true
			must(t, b.sample.Put(fmt.Appendf(nil, `{"resourceType":%q,"id":%q,"status":"final","language":"later"}`, typ, id)))
		}
	}
	return &changed
}

// saysOf checks the remarks of a job.
func saysOf(t *testing.T, job *state.Job, text string) {
	t.Helper()
	if !strings.Contains(fmt.Sprint(job.Issues), text) {
		t.Errorf("the remarks are %+v, want one that says: %s", job.Issues, text)
	}
}

// Ensure filters of one type are alternatives whose common rows come once, that they are proved, and that other types stay whole.
func TestTypeFilter(t *testing.T) {
	n := 0
	for name, queries := range map[string][]string{
		"one":              {"status=final"},
		"alternatives":     {"status=final", "status=amended"},
		"common rows":      {"status=final,amended", "status=amended,cancelled", "status=amended"},
		"nothing matches":  {"status=unknown"},
		"encoded":          {"status=final%2Camended"},
		"a reference":      {"subject=Patient/p1"},
		"longer than URLs": {"status=final," + strings.Repeat("x", 2000)},
	} {
		for _, server := range append(personalities(), fhirtest.Medplum(), with(fhirtest.Plain(), func(p *fhirtest.Personality) {
			p.Name, p.IgnoreLastUpdated = "paged", true
		}), with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.IgnoreSort = "unsorted", true })) {
			if n++; sparse(n) {
				continue
			}
			t.Run(name+"/"+server.Name, func(t *testing.T) {
				t.Parallel()
				inBubble(t, server, func(c *exporter.Config) { c.PageSize, c.MaxFileBytes = 5, 900 }, readings(t), func(t *testing.T, b *bubble) {
					kickoff := filteredBy(queries...)
					job := b.finish(b.kickOff(kickoff))
					want := b.snapshot()
					for key, body := range want {
						if strings.HasPrefix(key, "Patient/") {
							delete(want, key)
						}
						if plain := strings.ReplaceAll(queries[0], "%2C", ","); !matches(t, append(filteredBy(plain).Filters, kickoff.Filters...), key, body) {
							delete(want, key)
						}
					}
					same(t, b.rows(job), want)
					for _, proof := range job.Proof {
						if proof.Met < proof.Exported {
							t.Errorf("fewer rows were met than are exported: %+v", proof)
						}
						if proof.Verdict != state.Proved && proof.Verdict != state.Paged && server.Name != "paged" {
							t.Errorf("the account is %+v", proof)
						}
					}
				})
			})
		}
	}
}

// Ensure a filter that the server refuses, or does not show to have applied, ends the job: nothing wider is ever stored.
func TestTypeFilterThatIsNotEvaluated(t *testing.T) {
	withoutSelf := func(r *http.Request, b *bundle) int {
		if r.URL.Query().Has("status") {
			delete(*b, "link")
			(*b)["changed"] = true
		}
		return 0
	}
	for _, test := range []struct {
		name, query string
		server      fhirtest.Personality
		after       func(*http.Request, *bundle) int
	}{
		{"refused", "no-such-parameter=1", fhirtest.HAPI(), nil},
		{"refused without strict", "no-such-parameter=1", fhirtest.Plain(), nil},
		{"no self link", "status=final", fhirtest.HAPI(), withoutSelf},
		{"too long", "status=final," + strings.Repeat("x", 1500), with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.MaxURLBytes, p.NoPostSearch = 1200, true }), nil},
		{"self link that repeats what is ignored", "status=final", with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreEverything = true }), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, test.server, smallPages, readings(t), func(t *testing.T, b *bubble) {
				b.link.handler = &altered{sample: b.link.handler, after: test.after}
				job := b.finish(b.kickOff(filteredBy(test.query)))
				if job.Status != state.Failed || job.Failure.Status != 400 || job.Failure.Code != "not-supported" {
					t.Errorf("the job ended %s: %+v", job.Status, job.Failure)
				}
				if job.Failure != nil && (strings.Contains(job.Failure.Text, "such") || strings.Contains(job.Failure.Text, "final")) {
					t.Errorf("the failure repeats the filter: %s", job.Failure.Text)
				}
			})
		})
	}
}

// Ensure a row that is changed after T and before it is read is left out and counted, whether it matches now or not; that one
// written late and before T is there if it matches; and that no late one comes in that does not.
func TestTypeFilterWhileRowsChange(t *testing.T) {
	for _, server := range personalities() {
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, server, smallPages, readings(t), func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
				overtaken, told := b.overtakeOnce(t, "Observation", "o57"), false
				before := b.link.hook
				b.link.hook = func(r *http.Request) {
					before(r)
					if !told && strings.HasSuffix(r.URL.Path, "/Observation/_history") {
						told = true
						b.sample.CatchUp()
					}
				}
				stamp, late := time.Now(), time.Now().Add(time.Hour)
				for id, status := range map[string]string{"late-1": "final", "late-2": "amended", "o00": "cancelled", "o01": "final"} {
					must(t, b.sample.PutLate(fmt.Appendf(nil, `{"resourceType":"Observation","id":%q,"status":%q}`, id, status), stamp, late))
				}
				job := b.finish(b.kickOff(filteredBy("status=final")))
				truth := (&ledger{b.sample}).asOf(job.TransactionTime)
				for key, body := range truth {
					if !matches(t, filteredBy("status=final").Filters, key, body) || key == "Observation/o57" || strings.HasPrefix(key, "Patient/") {
						delete(truth, key)
					}
				}
				same(t, b.rows(job), truth)
				for _, proof := range job.Proof {
					if proof.Verdict != state.Proved {
						t.Errorf("the account is %+v", proof)
					}
				}
				if !*overtaken {
					t.Error("nothing was changed before it was read")
				}
				saysOf(t, job, "1 Observation resource was changed after the transaction time and before being read")
			})
		})
	}
}

// Ensure a late row that matches is found where no count can tell of it: nothing matched when the export was planned, or the
// server does not count; and that one which does not match is not added.
func TestTypeFilterOfLateRows(t *testing.T) {
	for _, server := range append(personalities(), with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name = "uncounted" }),
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.MaxURLBytes = "short addresses", 1200 })) {
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, server, smallPages, readings(t), func(t *testing.T, b *bubble) {
				if server.Name == "uncounted" {
					b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
						return r.URL.Query().Has("_total") || r.URL.Query().Has("_summary")
					}, Times: -1, Status: http.StatusBadRequest})
				}
				b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
				stamp, late := time.Now(), time.Now().Add(time.Hour)
				must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"late-1","status":"rare"}`), stamp, late),
					b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"late-2","status":"final"}`), stamp, late))
				told := false
				b.link.hook = func(r *http.Request) {
					if !told && strings.HasSuffix(r.URL.Path, "/Observation/_history") {
						told = true
						b.sample.CatchUp()
					}
				}
				kickoff := filteredBy("status=rare")
				if server.MaxURLBytes > 0 {
					kickoff = filteredBy("status=rare," + strings.Repeat("x", 1500))
				}
				kickoff.Types = []string{"Observation"}
				rows := b.rows(b.finish(b.kickOff(kickoff)))
				if len(rows) != 1 || rows["Observation/late-1"] == "" {
					t.Errorf("%d rows are exported, want the late one that matches: %v", len(rows), rows)
				}
			})
		})
	}
}

// Ensure a type whose windows the server refuses is filtered all the same.
func TestTypeFilterWithoutWindows(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, readings(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
		b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/Observation") && r.URL.Query().Has("_lastUpdated")
		}, Times: -1, Status: http.StatusBadRequest})
		kickoff := filteredBy("status=final")
		kickoff.Types = []string{"Observation"}
		want := b.snapshot()
		for key, body := range want {
			if !strings.HasPrefix(key, "Observation/") || !matches(t, kickoff.Filters, key, body) {
				delete(want, key)
			}
		}
		same(t, b.rows(b.finish(b.kickOff(kickoff))), want)
	})
}

// Ensure a row that a late write has made match no more is taken out, and that the proof stays whole for it.
func TestTypeFilterOfARowThatMatchesNoMore(t *testing.T) {
	inBubble(t, fhirtest.HAPI(), smallPages, readings(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
		must(t, b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"o00","status":"cancelled"}`), time.Now(), time.Now().Add(time.Hour)))
		told := false
		b.link.hook = func(r *http.Request) {
			if !told && strings.HasSuffix(r.URL.Path, "/Observation/_history") {
				told = true
				b.sample.CatchUp()
			}
		}
		kickoff := filteredBy("status=final")
		kickoff.Types = []string{"Observation"}
		job := b.finish(b.kickOff(kickoff))
		rows := b.rows(job)
		if len(rows) != 19 || rows["Observation/o00"] != "" {
			t.Errorf("%d rows are exported, want the 19 that match at T", len(rows))
		}
		if len(job.Proof) != 1 || job.Proof[0].Verdict != state.Proved {
			t.Errorf("the account is %+v", job.Proof)
		}
	})
}

// Ensure criteria about other resources are filters like others: what they match is exported at each level, with the membership
// that the sidecar decides, and is proved; and that a server which does not know them ends the job.
func TestTypeFilterByOtherResources(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		readings(t)(s)
		for id, members := range map[string]string{
			"chosen": member("Patient/p1"), "both": member("Patient/p0") + "," + member("Patient/p1"), "another": member("Patient/p0"),
		} {
			must(t, s.PutAt([]byte(group(id, members)), time.Now().Add(-time.Hour)))
		}
	}
	for _, server := range personalities() {
		for name, kickoff := range map[string]state.Kickoff{
			"system": kickoffOf(state.System), "patient": kickoffOf(state.Patient), "both": groupOf("both"), "another": groupOf("another"),
		} {
			t.Run(server.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
					kickoff.Types = []string{"Observation", "Patient"}
					kickoff.Filters = []state.TypeFilter{
						{Type: "Observation", Query: "subject:Patient._has:Group:member:_id=chosen"},
						{Type: "Patient", Query: "_has:Observation:subject:_id=o01,o03"},
					}
					job := b.finish(b.kickOff(kickoff))
					if server.NoHas {
						if job.Status != state.Failed || job.Failure.Status != 400 || job.Failure.Code != "not-supported" {
							t.Errorf("the job ended %s: %+v", job.Status, job.Failure)
						}
						return
					}
					want := b.snapshot()
					maps.DeleteFunc(want, func(key, body string) bool {
						matches := key == "Patient/p1" || strings.HasPrefix(key, "Observation/") && strings.Contains(body, "Patient/p1")
						return !matches || name == "another"
					})
					if (len(want) == 31) != (name != "another") {
						t.Fatalf("%d rows are expected: the records are wrong", len(want))
					}
					same(t, b.rows(job), want)
					for _, proof := range job.Proof {
						if proof.Verdict != state.Proved && proof.Verdict != state.Paged {
							t.Errorf("the account is %+v", proof)
						}
					}
				})
			})
		}
	}
}

// Ensure filtered Provenance of a server that wants a Patient in each search is what the filter matches, and that the export says so
// where it could be asked for by Patients only, and not by all that it may be about.
func TestTypeFilterOfProvenanceByPatients(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		visits(t)(s)
		must(t, s.PutAt([]byte(`{"resourceType":"Provenance","id":"of-visit","target":[{"reference":"Encounter/e0-0"}]}`), time.Now().Add(-time.Hour)))
	}
	ofP0 := func(key, body string) bool { return strings.Contains(body, `"Patient/p0"`) }
	for name, server := range map[string]fhirtest.Personality{
		"by target": wantsPatients("by target", func(p *fhirtest.Personality) { p.ProvenanceByTarget = true }),
		"included":  wantsPatients("included", func(p *fhirtest.Personality) { p.RevIncludes = true }),
	} {
		for query, matches := range map[string]func(key, body string) bool{
			"target=Patient/p0":          ofP0,
			"patient=p0":                 ofP0,
			"_id=of-p0,of-visit":         func(key, _ string) bool { return key == "Provenance/of-p0" || key == "Provenance/of-visit" },
			"_lastUpdated=ge1990-01-01":  func(string, string) bool { return true },
			"_lastUpdated=ge2100-01-01":  func(string, string) bool { return false },
			"no-such-parameter=Patient1": nil,
		} {
			t.Run(name+"/"+strings.ReplaceAll(query, "/", "-"), func(t *testing.T) {
				t.Parallel()
				inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
					kickoff := kickoffOf(state.Patient, "Encounter", "Patient", "Provenance")
					kickoff.Filters = []state.TypeFilter{{Type: "Provenance", Query: query}}
					job := b.finish(b.kickOff(kickoff))
					if matches == nil {
						if job.Status != state.Failed {
							t.Errorf("the job ended %s", job.Status)
						}
						return
					}
					want, lost := b.snapshot(), false
					got := b.rows(job)
					maps.DeleteFunc(want, func(key, body string) bool {
						switch typ, _, _ := strings.Cut(key, "/"); {
						case typ != "Provenance":
							return typ == "Group"
						case !matches(key, body) || key == "Provenance/of-nobody":
							return true
						}
						lost = lost || got[key] == ""
						return key == "Provenance/of-visit" && got[key] == ""
					})
					same(t, got, want)
					if said := strings.Contains(fmt.Sprint(job.Issues), "Provenance of Patients only"); lost && !said {
						t.Errorf("Provenance is missing, and the remarks are %+v", job.Issues)
					}
				})
			})
		}
	}
}
