package exporter_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// remarkable are exports with remarks: of holes, of what a server cannot do, of what a client asked for.
var remarkable = []struct {
	name        string
	personality fhirtest.Personality
	run         func(*testing.T, *bubble) *state.Job
}{
	{"a broken row, and a type that may not be read", fhirtest.Plain(), func(_ *testing.T, b *bubble) *state.Job {
		b.link.handler = &altered{
			sample: b.sample, after: onRead("Observation", poison("Obs-17")), before: refusing(http.StatusForbidden, anyOf("Condition")),
		}
		return b.finish(b.kickOff(system()))
	}},
	{"an answer that is not whole, with a code of the server's own", fhirtest.Plain(), func(_ *testing.T, b *bubble) *state.Job {
		b.link.handler = &altered{sample: b.sample, after: onRead("Observation", tell("Obs-17", "error", "made-up", -1))}
		return b.finish(b.kickOff(system()))
	}},
	{
		"a server that neither counts nor remembers nor has a type",
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory, p.NoSummaryCount = true, true }),
		func(_ *testing.T, b *bubble) *state.Job {
			refuseTotals(b.sample)
			b.sample.Fail(fhirtest.Fault{
				Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Condition") }, Times: -1, Status: 501,
			})
			return b.finish(b.kickOff(system()))
		},
	},
	{"ignored parameters, and resources without a block", fhirtest.Plain(), func(_ *testing.T, b *bubble) *state.Job {
		kickoff := system()
		kickoff.OrganizeBy = "Patient"
		kickoff.Ignored = []state.Issue{
			{Severity: "warning", Code: "not-supported", Text: "ignored: one"}, {Severity: "warning", Code: "invalid", Text: "ignored: two"},
		}
		return b.finish(b.kickOff(kickoff))
	}},
	{"a member who left", fhirtest.Plain(), sinceAMemberLeft},
	{
		"new members without a history",
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true }), sinceAMemberLeft,
	},
}

// sinceAMemberLeft is the increment of a Group's export, of which a member has left.
func sinceAMemberLeft(t *testing.T, b *bubble) *state.Job {
	first := b.finish(b.kickOff(groupOf("g", "Patient")))
	<-time.After(3 * time.Minute)
	must(t, b.sample.Put([]byte(group("g", member("Patient/p1")))))
	<-time.After(3 * time.Minute)
	kickoff := groupOf("g", "Patient")
	kickoff.Since = first.TransactionTime
	return b.finish(b.kickOff(kickoff))
}

// Ensure that the error files of exports are the golden ones. End-to-end tests give the golden file to a validator.
func TestErrorFilesAreTheGoldenOnes(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		clinic(t, 3, 4, group("g", member("Patient/p1"), member("Patient/p2")))(s)
		thirtyRows(t)(s)
		spread(t, s, "Condition", 5, time.Second, time.Hour)
	}
	partial := func(c *exporter.Config) { smallPages(c); c.AllowPartial = true }
	var got strings.Builder
	for _, test := range remarkable {
		inBubble(t, test.personality, partial, fill, func(t *testing.T, b *bubble) {
			job := test.run(t, b)
			files, err := b.store.Files(t.Context(), job.ID)
			must(t, err)
			said := 0
			for _, file := range files {
				if file.Kind != state.Error {
					continue
				}
				for _, line := range b.lines(job.Folder + "/" + file.Name) {
					got.WriteString(line + "\n")
					said++
				}
			}
			if job.Status != state.Completed || said == 0 || said != len(job.Issues) {
				t.Errorf("%s: the export ended %s with %d outcomes and the remarks %+v", test.name, job.Status, said, job.Issues)
			}
		})
	}
	golden := filepath.Join("testdata", "outcomes.golden.ndjson")
	if *update {
		must(t, os.WriteFile(golden, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if got.String() != string(want) {
		t.Errorf("the outcomes are not those of %s:\n%s", golden, got.String())
	}
}
