package exporter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// ledger is the truth about a sample server: its log of all versions, in the order in which they were committed. It is
// neither a search nor a history, which are what is tested. What is still to become visible is not in it.
type ledger struct {
	sample *fhirtest.Server
}

// asOf is what the server held at t, by Type/id: of each resource the last version that is not later.
func (l *ledger) asOf(t time.Time) map[string]string {
	rows := map[string]string{}
	for key, body := range l.sample.AsOf(t) {
		rows[key] = string(body)
	}
	return rows
}

// written lists the resources with a version that a condition holds for.
func (l *ledger) written(holds func(fhirtest.LogEntry) bool) map[string]bool {
	keys := map[string]bool{}
	for _, v := range l.sample.Log() {
		if holds(v) {
			keys[v.Type+"/"+v.ID] = true
		}
	}
	return keys
}

// real checks that each row of an export is a version that there was.
func (l *ledger) real(t *testing.T, kickoff state.Kickoff, rows map[string]string) {
	t.Helper()
	bodies := map[string]bool{}
	for _, v := range l.sample.Log() {
		if !v.Deleted {
			bodies[asExported(t, kickoff, v.Type, string(v.Body))] = true
		}
	}
	for key, body := range rows {
		if !bodies[body] {
			t.Errorf("%s never was like this: %s", key, body)
		}
	}
}

// story tells the versions of a resource, as seconds from t: when each was stamped and when it was seen.
func (l *ledger) story(key string, t time.Time) string {
	var parts []string
	for _, v := range l.sample.Log() {
		if v.Type+"/"+v.ID != key {
			continue
		}
		what := "written"
		if v.Deleted {
			what = "deleted"
		}
		parts = append(parts, fmt.Sprintf("%s at %.3f, seen at %.3f", what, v.Updated.Sub(t).Seconds(), v.Visible.Sub(t).Seconds()))
	}
	return strings.Join(parts, "; ")
}

// newest maps each resource that was ever there to its last version.
func (l *ledger) newest() map[string]fhirtest.LogEntry {
	newest := map[string]fhirtest.LogEntry{}
	for _, v := range l.sample.Log() {
		newest[v.Type+"/"+v.ID] = v
	}
	return newest
}

// expected is what an export with the transaction time has to hold.
func (l *ledger) expected(t *testing.T, job *state.Job, patients []string) map[string]string {
	t.Helper()
	kickoff, rows := job.Kickoff, l.asOf(job.TransactionTime)
	var newcomers []string
	if patients = named(kickoff, patients); kickoff.Level == state.Group {
		patients = named(kickoff, membersOf(t, rows, kickoff.Group))
		if !kickoff.Since.IsZero() { // the whole record of who has come since belongs to the increment
			then := membersOf(t, l.asOf(kickoff.Since), kickoff.Group)
			newcomers = slices.DeleteFunc(slices.Clone(patients), func(id string) bool { return slices.Contains(then, id) })
		}
	}
	maps.DeleteFunc(rows, func(key, body string) bool {
		if len(kickoff.Associated) > 0 && strings.HasPrefix(key, "Provenance/") { // it is added to the others, see addAssociated
			return true
		}
		if !kickoff.Until.IsZero() && !updated(t, body).Before(kickoff.Until) || !matches(t, kickoff.Filters, key, body) {
			return true
		}
		if updated(t, body).After(kickoff.Since) {
			return !belongs(t, kickoff, key, body, patients)
		}
		return len(newcomers) == 0 || !belongs(t, kickoff, key, body, newcomers)
	})
	for key, body := range rows {
		typ, _, _ := strings.Cut(key, "/")
		rows[key] = asExported(t, kickoff, typ, body)
	}
	return rows
}

// named leaves of some patients those that the parameter patient names.
func named(kickoff state.Kickoff, patients []string) []string {
	if len(kickoff.Patients) == 0 {
		return patients
	}
	return slices.DeleteFunc(slices.Clone(patients), func(id string) bool { return !slices.Contains(kickoff.Patients, id) })
}

// strangers lists whom the parameter patient names although the export cannot hold them: who is no member of the Group at T,
// or at Patient level does not exist then, nor at _since.
func (l *ledger) strangers(t *testing.T, job *state.Job) []string {
	t.Helper()
	kickoff, rows := job.Kickoff, l.asOf(job.TransactionTime)
	var members []string
	if kickoff.Level == state.Group {
		members = membersOf(t, rows, kickoff.Group)
	} else if !kickoff.Since.IsZero() {
		maps.Copy(rows, l.asOf(kickoff.Since))
	}
	return slices.DeleteFunc(slices.Clone(kickoff.Patients), func(id string) bool {
		return slices.Contains(members, id) || kickoff.Level == state.Patient && rows["Patient/"+id] != ""
	})
}

// matches tells whether a resource matches one of its type's filters, which are lists of codes of one root element, or a
// reference. One without a filter does.
func matches(t *testing.T, filters []state.TypeFilter, key, body string) bool {
	t.Helper()
	var resource map[string]any
	if err := json.Unmarshal([]byte(body), &resource); err != nil {
		t.Fatal(err)
	}
	filtered := false
	for _, filter := range filters {
		if typ, _, _ := strings.Cut(key, "/"); typ != filter.Type {
			continue
		}
		filtered = true
		name, list, _ := strings.Cut(filter.Query, "=")
		value, _ := resource[name].(string)
		if reference, ok := resource[name].(map[string]any); ok {
			value, _ = reference["reference"].(string)
		}
		if slices.Contains(strings.Split(list, ","), value) {
			return true
		}
	}
	return !filtered
}

// belongs tells whether a resource belongs to an export of some patients, whenever it was written.
func belongs(t *testing.T, kickoff state.Kickoff, key, body string, patients []string) bool {
	t.Helper()
	typ, id, _ := strings.Cut(key, "/")
	switch {
	case len(kickoff.Types) > 0 && !slices.Contains(kickoff.Types, typ):
		return false
	case kickoff.Level == state.System:
		return true
	case typ == "Patient":
		return slices.Contains(patients, id)
	case typ == "Organization", typ == "Group" && kickoff.Level == state.Group:
		return false
	}
	var tree any
	if err := json.Unmarshal([]byte(body), &tree); err != nil {
		t.Fatal(err)
	}
	return names(tree, patients)
}

// deletedSince lists what an increment has to name as deleted: what was there once, is not at T, and belonged to the export by
// its last version, or by that of _since and a Patient who still belongs to it. A full export names nothing.
func (l *ledger) deletedSince(t *testing.T, job *state.Job, patients []string) map[string]bool {
	t.Helper()
	kickoff, gone := job.Kickoff, map[string]bool{}
	if kickoff.Since.IsZero() {
		return gone
	}
	patients = named(kickoff, patients)
	before, stayed := l.asOf(kickoff.Since), patients
	if kickoff.Level == state.Group {
		patients = named(kickoff, membersOf(t, l.asOf(job.TransactionTime), kickoff.Group))
		stayed = membersOf(t, before, kickoff.Group)
		stayed = slices.DeleteFunc(stayed, func(id string) bool { return !slices.Contains(patients, id) })
	}
	bodies := map[string]string{}
	for _, v := range l.sample.Log() {
		key := v.Type + "/" + v.ID
		if v.Updated.After(job.TransactionTime) {
			continue
		}
		if delete(gone, key); !v.Deleted {
			bodies[key] = string(v.Body)
		} else if v.Updated.After(kickoff.Since) && (kickoff.Until.IsZero() || v.Updated.Before(kickoff.Until)) {
			belonged := before[key] != "" && belongs(t, kickoff, key, before[key], stayed)
			gone[key] = belonged || belongs(t, kickoff, key, bodies[key], patients)
		}
	}
	maps.DeleteFunc(gone, func(_ string, belonged bool) bool { return !belonged })
	return gone
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
