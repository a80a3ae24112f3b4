package exporter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// ledger is the truth about a sample server: every version of every resource in the order in which the server numbered
// them. It knows them from the writes themselves and not from searches or histories, which are what is tested.
type ledger struct {
	sample *fhirtest.Server

	mu       sync.Mutex
	versions map[string][]version
}

// version is one version of a resource. A deletion has no body.
type version struct {
	body string
	// at is its lastUpdated, seen when it became visible: later than at by the time that its transaction took.
	at, seen time.Time
}

// put notes the version that was just written, as a read gives it.
func (l *ledger) put(t *testing.T, key string) {
	t.Helper()
	answer := httptest.NewRecorder()
	l.sample.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/fhir/"+key+"?_pretty=false", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("a resource that was just written is read with status %d", answer.Code)
	}
	body := answer.Body.String()
	l.add(key, version{body: body, at: updated(t, body), seen: time.Now()})
}

func (l *ledger) add(key string, v version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.versions[key] = append(l.versions[key], v)
}

// asOf is what the server held at t: of each resource the highest version that is not later.
func (l *ledger) asOf(t time.Time) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := map[string]string{}
	for key, versions := range l.versions {
		for _, v := range versions {
			if v.at.After(t) {
				continue
			}
			if rows[key] = v.body; v.body == "" {
				delete(rows, key)
			}
		}
	}
	return rows
}

// shownAfter lists the resources with a version of t or earlier that became visible after a moment.
func (l *ledger) shownAfter(t, moment time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []string
	for key, versions := range l.versions {
		if slices.ContainsFunc(versions, func(v version) bool { return !v.at.After(t) && v.seen.After(moment) }) {
			keys = append(keys, key)
		}
	}
	return keys
}

// story tells the versions of a resource, as seconds from t: when each was stamped and when it was seen.
func (l *ledger) story(key string, t time.Time) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parts []string
	for _, v := range l.versions[key] {
		what := "written"
		if v.body == "" {
			what = "deleted"
		}
		parts = append(parts, fmt.Sprintf("%s at %.3f, seen at %.3f", what, v.at.Sub(t).Seconds(), v.seen.Sub(t).Seconds()))
	}
	return strings.Join(parts, "; ")
}

// living lists the resources that exist now, gone those that existed once, both sorted.
func (l *ledger) living() (living, gone []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(l.versions)) {
		versions := l.versions[key]
		if versions[len(versions)-1].body == "" {
			gone = append(gone, key)
		} else {
			living = append(living, key)
		}
	}
	return living, gone
}

// notBefore lists the living resources whose lastUpdated is not before t, sorted.
func (l *ledger) notBefore(t time.Time) []string {
	living, _ := l.living()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(living, func(key string) bool {
		versions := l.versions[key]
		return versions[len(versions)-1].at.Before(t)
	})
}

// expected is what an export with the transaction time has to hold.
func (l *ledger) expected(t *testing.T, job *state.Job, patients []string) map[string]string {
	t.Helper()
	kickoff, rows := job.Kickoff, l.asOf(job.TransactionTime)
	var newcomers []string
	if kickoff.Level == state.Group {
		patients = membersOf(t, rows, kickoff.Group)
		if !kickoff.Since.IsZero() { // the whole record of who has come since belongs to the increment
			then := membersOf(t, l.asOf(kickoff.Since), kickoff.Group)
			newcomers = slices.DeleteFunc(slices.Clone(patients), func(id string) bool { return slices.Contains(then, id) })
		}
	}
	maps.DeleteFunc(rows, func(key, body string) bool {
		typ, id, _ := strings.Cut(key, "/")
		if len(kickoff.Types) > 0 && !slices.Contains(kickoff.Types, typ) {
			return true
		}
		patients := patients
		if !updated(t, body).After(kickoff.Since) {
			if len(newcomers) == 0 {
				return true
			}
			patients = newcomers
		}
		switch {
		case kickoff.Level == state.System:
			return false
		case typ == "Patient":
			return !slices.Contains(patients, id)
		case typ == "Organization", typ == "Group" && kickoff.Level == state.Group:
			return true
		}
		var tree any
		if err := json.Unmarshal([]byte(body), &tree); err != nil {
			t.Fatal(err)
		}
		return !names(tree, patients)
	})
	return rows
}

// membersOf follows a Group and the Groups in it.
func membersOf(t *testing.T, rows map[string]string, id string) []string {
	t.Helper()
	var patients []string
	groups := []string{"Group/" + id}
	for next := 0; next < len(groups); next++ {
		var group struct {
			Member []struct{ Entity struct{ Reference string } }
		}
		if body := rows[groups[next]]; body != "" {
			if err := json.Unmarshal([]byte(body), &group); err != nil {
				t.Fatal(err)
			}
		}
		for _, member := range group.Member {
			reference := member.Entity.Reference
			if patient, ok := strings.CutPrefix(reference, "Patient/"); ok {
				patients = append(patients, patient)
			} else if !slices.Contains(groups, reference) {
				groups = append(groups, reference)
			}
		}
	}
	return patients
}
