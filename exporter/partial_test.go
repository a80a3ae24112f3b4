package exporter_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// remarks reads the error files of a job: the texts of its OperationOutcomes, with their severities in front.
func (e *engine) remarks(job *state.Job) []string {
	e.t.Helper()
	files, err := e.store.Files(e.t.Context(), job.ID)
	if err != nil {
		e.t.Fatal(err)
	}
	var texts []string
	for _, file := range files {
		if file.Kind != state.Error {
			continue
		}
		for _, line := range e.lines(job.Folder + "/" + file.Name) {
			var outcome struct {
				ResourceType string
				Issue        []struct {
					Severity, Code, Diagnostics string
					Details                     struct{ Text string }
				}
			}
			if err := json.Unmarshal([]byte(line), &outcome); err != nil || outcome.ResourceType != "OperationOutcome" {
				e.t.Fatalf("no OperationOutcome in %s: %v", file.Name, err)
			}
			for _, issue := range outcome.Issue {
				texts = append(texts, issue.Severity+" "+issue.Code+" "+issue.Diagnostics+issue.Details.Text)
			}
		}
	}
	return texts
}

func anObservation(key string) bool { return strings.HasPrefix(key, "Observation/") }

// refusing answers the requests that match with a status.
func refusing(status int, match func(*http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !match(r) {
			return false
		}
		refuse(w, status)
		return true
	}
}

// Ensure an export that may be partial holds all that could be read, and that its error file and its account name what could
// not: nothing is missing in silence.
func TestPartialExportNamesItsHoles(t *testing.T) {
	for name, test := range map[string]struct {
		door *altered
		lost func(key string) bool
		want string
	}{
		"a broken row": {
			&altered{after: onRead("Observation", poison("Obs-17"))}, func(key string) bool { return key == "Observation/Obs-17" },
			"error exception Observation: 1 resources",
		},
		"a type that may not be read": {
			&altered{before: refusing(http.StatusForbidden, observations)}, anObservation, "error forbidden Observation: 30 resources",
		},
		"a type that is refused altogether": {
			&altered{before: refusing(http.StatusForbidden, anyOf("Observation"))}, anObservation, "error forbidden Observation: resources",
		},
		"a type that cannot be asked for": {
			&altered{before: refusing(http.StatusBadRequest, anyOf("Observation"))}, anObservation, "error not-supported Observation: resources",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) { smallPages(c); c.AllowPartial = true }
			inBubble(t, fhirtest.Plain(), edit, clinicAndRows(t), func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(system())) // the probes are over
				want := b.snapshot()
				for key := range want {
					if test.lost(key) {
						delete(want, key)
					}
				}
				test.door.sample = b.sample
				b.link.handler = test.door
				job := b.finish(b.kickOff(system()))
				same(t, b.rows(job), want)
				remarks := b.remarks(job)
				if len(remarks) != 1 || !strings.HasPrefix(remarks[0], test.want) {
					t.Errorf("the error file says %q, want one that begins with %q", remarks, test.want)
				}
				for _, proof := range job.Proof {
					if (proof.Verdict == state.Incomplete) != (proof.Type == "Observation") {
						t.Errorf("%s is %s", proof.Type, proof.Verdict)
					}
				}
			})
		})
	}
}

// clinicAndRows puts some patients with doses and thirty Observations.
func clinicAndRows(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		clinic(t, 3, 4)(s)
		thirtyRows(t)(s)
	}
}

// Ensure the error file names what a kick-off's client let be ignored, one OperationOutcome each, before anything else.
func TestIgnoredParametersAreReported(t *testing.T) {
	t.Parallel()
	e := startEngine(t, fhirtest.Plain(), 3, nil)
	kickoff := system()
	kickoff.Ignored = []state.Issue{
		{Severity: "warning", Code: "not-supported", Text: "ignored: one"}, {Severity: "warning", Code: "invalid", Text: "ignored: two"},
	}
	job := e.await(e.kickOff(kickoff))
	if got, want := e.remarks(job), []string{"warning not-supported ignored: one", "warning invalid ignored: two"}; !slices.Equal(got, want) {
		t.Errorf("remarks: got %q, want %q", got, want)
	}
}
