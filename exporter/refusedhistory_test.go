package exporter_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// ofOneObservation matches the histories of single Observations.
var ofOneObservation = regexp.MustCompile(`/Observation/[^/]+/_history$`)

// Ensure a row that changed before it was read, and whose history the server refuses, fails the export, or is named in the
// error file of one that may be partial. What is expunged is missed by nobody.
func TestRefusedHistoryOfAResourceIsAHole(t *testing.T) {
	n := 0
	for name, test := range map[string]struct {
		status   int
		expunged bool
		code     string // of the hole, empty where there is none
	}{
		"bad request":             {http.StatusBadRequest, false, "not-supported"},
		"forbidden":               {http.StatusForbidden, false, "forbidden"},
		"not found, but there":    {http.StatusNotFound, false, "not-supported"},
		"not allowed":             {http.StatusMethodNotAllowed, false, "not-supported"},
		"gone, but there":         {http.StatusGone, false, "not-supported"},
		"fails":                   {http.StatusInternalServerError, false, "exception"},
		"not implemented":         {http.StatusNotImplemented, false, "not-supported"},
		"not found, and expunged": {http.StatusNotFound, true, ""},
	} {
		for _, partial := range []bool{false, true} {
			if n++; sparse(n) {
				continue
			}
			t.Run(fmt.Sprintf("%s/partial %v", name, partial), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.AllowPartial = partial }
				inBubble(t, fhirtest.HAPI(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
					b.finish(b.kickOff(system())) // the probes are over
					want := b.snapshot()
					delete(want, "Observation/Obs-20")
					b.link.handler = &altered{sample: b.sample, before: refusing(test.status, func(r *http.Request) bool {
						return ofOneObservation.MatchString(r.URL.Path) || test.expunged && strings.HasSuffix(r.URL.Path, "/Observation/Obs-20")
					})}
					b.link.hook = changeUnread(t, b)
					job := b.finish(b.kickOff(system()))
					switch {
					case test.code == "":
						same(t, b.rows(job), want)
					case partial:
						same(t, b.rows(job), want)
						remarks := b.remarks(job)
						if len(remarks) != 1 || !strings.HasPrefix(remarks[0], "error "+test.code+" Observation: the history of 1 resources") {
							t.Errorf("the error file says %q", remarks)
						}
					case job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Observation: the history of 1 resources"):
						t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
					}
				})
			})
		}
	}
}

// changeUnread changes a row that has not been read after T.
func changeUnread(t *testing.T, b *bubble) func(*http.Request) {
	pages := 0
	return func(r *http.Request) {
		if !isObservations(r) {
			return
		}
		if pages++; pages == 1 {
			must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-20","language":"new"}`)))
		}
	}
}

// Ensure a deletion of which the server refuses to tell whether it belonged to the export is a hole, too.
func TestRefusedHistoryOfADeletionIsAHole(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusInternalServerError} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/partial %v", status, partial), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.AllowPartial = partial }
				inBubble(t, fhirtest.HAPI(), edit, clinic(t, 6, 4), func(t *testing.T, b *bubble) {
					kickoff := kickoffOf(state.Patient)
					kickoff.Since = b.finish(b.kickOff(kickoff)).TransactionTime
					<-time.After(5 * time.Minute)
					must(t, b.sample.Delete("Immunization", "i0"), b.sample.Delete("Patient", "p3"))
					<-time.After(5 * time.Minute)
					b.link.handler = &altered{sample: b.sample, before: refusing(status, func(r *http.Request) bool {
						return strings.HasSuffix(r.URL.Path, "/Immunization/i0/_history")
					})}
					job := b.finish(b.kickOff(kickoff))
					if !partial {
						if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "Immunization: the history of 1 resources") {
							t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
						}
						return
					}
					if got := b.deleted(job); !slices.Equal(got, []string{"Patient/p3"}) {
						t.Errorf("deleted %v, want the Patient", got)
					}
					if remarks := b.remarks(job); len(remarks) != 1 || !strings.Contains(remarks[0], "Immunization: the history of 1 resources") {
						t.Errorf("the error file says %q", remarks)
					}
				})
			})
		}
	}
}

// Ensure rows that are too large to be kept are exported as of T although they changed before they were read.
func TestLargeRowsThatChangedAreAsOfT(t *testing.T) {
	large := func(id string) []byte {
		return fmt.Appendf(nil, `{"resourceType":"Observation","id":%q,"text":{"div":%q}}`, id, strings.Repeat("x", 3<<20))
	}
	for _, server := range []fhirtest.Personality{fhirtest.HAPI(), histories()["of resources"]} {
		t.Run(server.Name, func(t *testing.T) {
			fill := func(s *fhirtest.Server) {
				thirtyRows(t)(s)
				for _, id := range []string{"large-1", "large-2", "large-3"} {
					must(t, s.PutAt(large(id), time.Now().Add(-10*time.Minute)))
				}
			}
			inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
				probeBefore(b)
				want := b.snapshot()
				disturb(b, func() {
					for _, id := range []string{"large-1", "large-2", "large-3"} {
						must(t, b.sample.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":%q}`, id)))
					}
				})
				same(t, b.rows(b.finish(b.kickOff(ofObservations()))), want)
			})
		})
	}
}
