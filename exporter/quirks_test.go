package exporter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// quirk is a habit of a server with what the export makes of it.
type quirk struct {
	habit   func(*fhirtest.Personality)
	kickoff state.Kickoff // system() where it is not set
	fill    func(*testing.T, *fhirtest.Server)
	// fails is in the text of the failure, of code incomplete; empty where the export is the state at T.
	fails string
	// met tells whether the requests show that the quirk was met. May be nil.
	met func(*fhirtest.Server) bool
}

// fiftyFive are 30 Observations one by one, and 25 of one instant, which need the server's own links.
func fiftyFive(t *testing.T, s *fhirtest.Server) {
	thirtyRows(t)(s)
	burst(t, s, "Observation", 25, 90*time.Minute)
}

// quirks are the habits that no product of the chaos suite has, or that its data do not reach.
func quirks() map[string]quirk {
	poisoned := func(t *testing.T, s *fhirtest.Server) {
		fiftyFive(t, s)
		s.Poison("Observation", "Obs-17")
	}
	longer := func(size int) func(*fhirtest.Server) bool {
		return func(s *fhirtest.Server) bool {
			return slices.ContainsFunc(s.Requests(), func(r fhirtest.Request) bool { return len(r.Path+"?"+r.RawQuery) > size })
		}
	}
	empty := func(p *fhirtest.Personality) { p.Paging = fhirtest.KeysetPages }
	return map[string]quirk{
		"results end at 15": {habit: func(p *fhirtest.Personality) { p.ResultCap = 15 }, fails: "Observation: 10 resources"},
		"results end at 2004": { // as HAPI's do: a window of more rows than that is cut, an instant cannot be
			habit: func(p *fhirtest.Personality) { p.ResultCap = 2004 },
			fill:  func(t *testing.T, s *fhirtest.Server) { spread(t, s, "Observation", 2500, time.Second, time.Hour) },
		},
		"results end at 2004, 2020 of one instant": {
			habit: func(p *fhirtest.Personality) { p.ResultCap = 2004 },
			fill:  func(t *testing.T, s *fhirtest.Server) { burst(t, s, "Observation", 2020, time.Hour) },
			fails: "Observation: 16 resources",
		},
		"results and totals end at 15": {
			habit: func(p *fhirtest.Personality) { p.ResultCap, p.NoSummaryCount = 15, true },
			fill:  func(t *testing.T, s *fhirtest.Server) { thirtyRows(t)(s) },
		},
		"results and totals end at 15, 25 of one instant": {
			habit: func(p *fhirtest.Personality) { p.ResultCap, p.NoSummaryCount = 15, true }, fails: "Observation: resources",
		},
		"results and totals end at 20, 25 of one instant": { // the last page is full
			habit: func(p *fhirtest.Personality) { p.ResultCap, p.NoSummaryCount = 20, true }, fails: "Observation: resources",
		},
		"results and totals end at 15, no time": {
			habit: func(p *fhirtest.Personality) { p.ResultCap, p.NoSummaryCount, p.IgnoreLastUpdated = 15, true, true },
			fails: "Observation: resources",
		},
		"links in a circle":       {habit: func(p *fhirtest.Personality) { p.LoopingNext = true }, fails: "Observation"},
		"first page empty":        {habit: func(p *fhirtest.Personality) { empty(p); p.EmptyFirst = true }},
		"every other page empty":  {habit: func(p *fhirtest.Personality) { empty(p); p.EmptyBetween = true }},
		"empty pages":             {habit: func(p *fhirtest.Personality) { empty(p); p.EmptyFirst, p.EmptyBetween = true, true }},
		"a warning first":         {habit: func(p *fhirtest.Personality) { p.OutcomeFirst = "warning" }},
		"an error first":          {habit: func(p *fhirtest.Personality) { p.OutcomeFirst = "error" }, kickoff: kickoffOf(state.System, "Observation"), fails: "Observation"},
		"entries of links":        {habit: func(p *fhirtest.Personality) { p.LinkEntries = true }},
		"a row left out, error":   {habit: func(p *fhirtest.Personality) { p.PoisonOutcome = "error" }, fill: poisoned, fails: "Observation"},
		"a row left out, warning": {habit: func(p *fhirtest.Personality) { p.PoisonOutcome = "warning" }, fill: poisoned, fails: "Observation: 1 resources"},
		"short addresses": {
			habit:   func(p *fhirtest.Personality) { p.MaxURLBytes = 300 },
			met:     longer(300),
			kickoff: groupOf("g", "Immunization", "Patient"),
			fill: func(t *testing.T, s *fhirtest.Server) {
				var members []string
				for i := range 40 {
					members = append(members, member(fmt.Sprintf("Patient/p%d", i)))
				}
				clinic(t, 60, 30, group("g", members...))(s)
			},
		},
	}
}

// Ensure each quirk of a server ends in the state at T or in a failure that names what is missing, never in an export that is
// short without a word.
func TestQuirks(t *testing.T) {
	n := 0
	for name, q := range quirks() {
		for _, base := range []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI()} {
			if n++; sparse(n) {
				continue
			}
			t.Run(name+"/"+base.Name, func(t *testing.T) {
				t.Parallel()
				fill := func(s *fhirtest.Server) {
					if q.fill == nil {
						q.fill = fiftyFive
					}
					q.fill(t, s)
				}
				edit := func(c *exporter.Config) { c.PageSize, c.Workers = 10, 2 }
				inBubble(t, with(base, q.habit), edit, fill, func(t *testing.T, b *bubble) { q.run(t, b) })
			})
		}
	}
}

func (q *quirk) run(t *testing.T, b *bubble) {
	t.Helper()
	want := b.snapshot()
	kickoff := q.kickoff
	if kickoff.Level == "" {
		kickoff = system()
	} else {
		want = (&ledger{b.sample}).expected(t, &state.Job{Kickoff: kickoff, TransactionTime: time.Now()}, nil)
	}
	job := b.finish(b.kickOff(kickoff))
	if q.met != nil && !q.met(b.sample) {
		t.Error("the quirk was not met")
	}
	if q.fails == "" {
		same(t, b.rows(job), want)
		return
	}
	if job.Status != state.Failed || job.Failure.Code != "incomplete" || !strings.Contains(job.Failure.Text, q.fails) {
		t.Errorf("the export ended %s: %+v, remarks %+v, want a failure that says %q", job.Status, job.Failure, job.Issues, q.fails)
	}
}

// Ensure an instant of just as many rows as a search engine gives and counts is not taken for whole where the server cannot
// show it in another order, and one of another number is.
func TestRoundEndWithoutAnotherOrder(t *testing.T) {
	for rows, want := range map[int]state.Status{10_001: state.Failed, 9_999: state.Completed} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			t.Parallel()
			p := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.ResultCap, p.NoSummaryCount, p.IgnoreSort = 10_000, true, true })
			edit := func(c *exporter.Config) { c.PageSize, c.Workers = 1000, 1 }
			fill := func(s *fhirtest.Server) { burst(t, s, "Observation", rows, time.Hour) }
			inBubble(t, p, edit, fill, func(t *testing.T, b *bubble) {
				if job := b.finish(b.kickOff(ofObservations())); job.Status != want {
					t.Errorf("the export ended %s: %+v, want %s", job.Status, job.Failure, want)
				}
			})
		})
	}
}
