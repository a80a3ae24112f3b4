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

// wantsPatient refuses searches of types other than Patient and Group that name no Patient, as some products do, and counts.
func wantsPatient(w http.ResponseWriter, r *http.Request) bool {
	typ := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	query := r.URL.Query()
	switch {
	case typ != "Immunization" && typ != "Observation" && typ != "Condition":
		return false
	case query.Has("patient") || query.Has("subject") || query.Has("performer") || query.Has("asserter") || query.Has("_page"):
		return false
	}
	refuse(w, http.StatusBadRequest)
	return true
}

// Ensure a server that refuses searches without a Patient is exported Patient by Patient, also over a crash.
func TestServerThatWantsAPatient(t *testing.T) {
	for _, personality := range []fhirtest.Personality{
		fhirtest.Plain(), fhirtest.Microsoft(),
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true }),
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoSummaryCount = true }),
	} {
		for _, level := range []state.Level{state.Patient, state.Group} {
			t.Run(fmt.Sprintf("%s/%s", personality.Name, level), func(t *testing.T) {
				t.Parallel()
				fill := clinic(t, 12, 4, group("g", member("Patient/p3"), member("Patient/p7")))
				inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
					b.link.handler = &altered{sample: b.link.handler, before: wantsPatient}
					kickoff := groupOf("g", "Immunization", "Patient", "Observation")
					patients := []string{"p3", "p7"}
					if level == state.Patient {
						kickoff.Level, kickoff.Group, patients = level, "", nil
						for p := range 12 {
							patients = append(patients, fmt.Sprintf("p%d", p))
						}
					}
					want := ofPatients(t, b.snapshot(), patients...)
					frozen := b.events.freeze(60)
					id := b.kickOff(kickoff)
					select {
					case <-frozen:
						b.resume(true)
					case <-time.After(patience):
						b.events.thaw()
					}
					same(t, b.rows(b.finish(id)), want)
				})
			})
		}
	}
}

// Ensure a system export of such a server fails and names the types, rather than leave them out.
func TestSystemExportOfAServerThatWantsAPatient(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, clinic(t, 5, 4), func(t *testing.T, b *bubble) {
		b.link.handler = &altered{sample: b.link.handler, before: wantsPatient}
		job := b.finish(b.kickOff(system()))
		if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Immunization: resources are missing: the server cannot be asked for them") ||
			!strings.Contains(job.Failure.Text, "allow_partial") {
			t.Errorf("%s %+v, want a failure that names Immunization", job.Status, job.Failure)
		}
	})
}

// Ensure lists that the server finds too long are made shorter, and are given up when even one id is too many.
func TestListsThatAreTooLong(t *testing.T) {
	members := make([]string, 0, 30)
	patients := make([]string, 0, 30)
	for p := range 30 {
		members, patients = append(members, member(fmt.Sprintf("Patient/p%d", p))), append(patients, fmt.Sprintf("p%d", p))
	}
	for _, status := range []int{400, 413, 414} {
		for _, most := range []int{7, 0} {
			t.Run(fmt.Sprintf("%d/%d ids", status, most), func(t *testing.T) {
				t.Parallel()
				fill := clinic(t, 100, 12, group("g", members...))
				inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
					want := ofPatients(t, b.snapshot(), patients...)
					refused := 0
					b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
						query := r.URL.Query()
						ids := strings.Count(query.Get("patient"), "Patient/")
						if query.Get("_summary") != "" || ids <= most {
							return false
						}
						refused++
						refuse(w, status)
						return true
					}}
					got := b.rows(b.finish(b.kickOff(groupOf("g", "Immunization", "Patient"))))
					same(t, got, want)
					if refused == 0 {
						t.Error("no list was too long")
					}
				})
			})
		}
	}
}

// Ensure each way that an operator can force gives the same rows at both levels, and asks the way it says. Members of a Group
// can be asked for where there is one only.
func TestForcedStrategies(t *testing.T) {
	for strategy, asks := range map[string]string{
		exporter.StrategyCrawl: "", exporter.StrategyLists: "patient=Patient/p3,Patient/p7",
		exporter.StrategyPatients: "patient=Patient/p7&", exporter.StrategyHas: "patient:Patient._has:Group:member:_id=g",
		exporter.StrategyCompartment: "/Patient/p7/Immunization?",
	} {
		for _, level := range []state.Level{state.Patient, state.Group} {
			if strategy == exporter.StrategyHas && level == state.Patient {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", strategy, level), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) {
					smallPages(c)
					c.Strategy = strategy
				}
				personality := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Compartments = fhirtest.OwnTypes })
				inBubble(t, personality, edit, clinic(t, 12, 4, group("g", member("Patient/p3"), member("Patient/p7"))), func(t *testing.T, b *bubble) {
					kickoff, asks, want := groupOf("g", "Immunization", "Patient"), asks, ofPatients(t, b.snapshot(), "p3", "p7")
					if level == state.Patient {
						kickoff.Level, kickoff.Group = level, ""
						var all []string
						for p := range 12 {
							all = append(all, fmt.Sprintf("p%d", p))
						}
						want = ofPatients(t, b.snapshot(), all...)
						asks = strings.Replace(asks, "Patient/p3,Patient/p7", "Patient/p0,Patient/p1,Patient/p10", 1)
					}
					same(t, b.rows(b.finish(b.kickOff(kickoff))), want)
					asked := false
					for _, r := range b.sample.Requests() {
						asked = asked || strings.Contains(r.RawQuery, "_sort") && strings.Contains(r.Path+"?"+r.RawQuery, asks)
					}
					if !asked {
						t.Errorf("nothing was asked for by %s", strategy)
					}
				})
			})
		}
	}
}

// Ensure a strategy that the server ignores fails the export: what is forced is not replaced in silence.
func TestForcedStrategyThatIsNotHonoured(t *testing.T) {
	for _, strategy := range []string{exporter.StrategyLists, exporter.StrategyCompartment} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) {
				smallPages(c)
				c.Strategy = strategy
			}
			ignores := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoPatientLists = true })
			fill := clinic(t, 12, 4, group("g", member("Patient/p3")))
			inBubble(t, ignores, edit, fill, func(t *testing.T, b *bubble) {
				job := b.finish(b.kickOff(groupOf("g", "Immunization")))
				if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Immunization by "+strategy) {
					t.Errorf("%s %+v, want a failure that names type and strategy", job.Status, job.Failure)
				}
			})
		})
	}
}

// Ensure a server on which everything is forbidden fails the job as forbidden.
func TestEverythingForbidden(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(system())) // the probes are over
		b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/metadata") || r.URL.Query().Get("_count") == "1" && len(r.URL.Query()) == 1 {
				return false
			}
			refuse(w, http.StatusForbidden)
			return true
		}}
		job := b.finish(b.kickOff(system()))
		if job.Status != state.Failed || job.Failure.Code != "forbidden" {
			t.Errorf("%s %+v, want a failure of code forbidden", job.Status, job.Failure)
		}
	})
}

// Ensure a server that breaks what it was seen to do is probed again by the next job.
func TestBrokenPromiseIsProbedAgain(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		probes := func() (n int) {
			for _, r := range b.sample.Requests() {
				if strings.Contains(r.RawQuery, "_sort=-_lastUpdated") && strings.Contains(r.RawQuery, "_count=50") {
					n++
				}
			}
			return n
		}
		b.link.handler = &altered{sample: b.link.handler, after: onRead("Observation", foreign)}
		if job := b.finish(b.kickOff(system())); job.Status != state.Failed {
			t.Fatalf("%s, want a failure", job.Status)
		}
		before := probes()
		b.link.handler = b.sample
		same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
		if probes() != before+1 {
			t.Errorf("%d probes, then %d: the server was not probed again", before, probes())
		}
	})
}
