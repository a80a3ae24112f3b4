package e2e

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	readsPerType  = 400 // lines compared with a read, unless E2E_FULL asks for all
	readsAtOnce   = 4
	instantLayout = "2006-01-02T15:04:05.000Z"
)

// Ensure the whole server comes out: every row once, as a read returns it, and the same once more.
func TestSystemExport(t *testing.T) {
	server := hapi(t)
	s := startSidecar(t, server.base, nil)
	before := time.Now()
	first := s.export(t, "$export")

	equalSets(t, first.rows, server.data.system())
	equalReads(t, server, first.rows)
	checkTimes(t, first, before)
	if got, want := first.manifest.Request, s.base+"/$export"; got != want {
		t.Errorf("manifest: request %q, want %q", got, want)
	}

	second := s.export(t, "$export")
	equalRows(t, second.rows, first.rows)
	if second.manifest.TransactionTime.Before(first.manifest.TransactionTime) {
		t.Errorf("transaction time went back from %v to %v", first.manifest.TransactionTime, second.manifest.TransactionTime)
	}
	s.release(t, first.statusURL)
	s.release(t, second.statusURL)
}

// Ensure the compartments come out whole: rows of two patients once, and rows that HAPI has not indexed.
func TestPatientExport(t *testing.T) {
	server := hapi(t)
	s := startSidecar(t, server.base, nil)
	first := s.export(t, "Patient/$export")
	equalSets(t, first.rows, server.data.patientLevel(t))
	equalReads(t, server, first.rows)
	equalRows(t, s.export(t, "Patient/$export").rows, first.rows)
}

func TestGroupExport(t *testing.T) {
	server := hapi(t)
	s := startSidecar(t, server.base, nil)
	for _, id := range []string{groupTen, groupNested, groupInner, groupEnded, groupEmpty, groupBig} {
		t.Run(id, func(t *testing.T) {
			first := s.export(t, "Group/"+id+"/$export")
			want := server.data.groupLevel(t, id, first.manifest.TransactionTime)
			if (len(want) == 0) != (id == groupEmpty) {
				t.Fatalf("%d rows are expected of this Group: the records are wrong", len(want))
			}
			equalSets(t, first.rows, want)
			equalReads(t, server, first.rows)
			equalRows(t, s.export(t, "Group/"+id+"/$export").rows, first.rows)
		})
	}
}

// Ensure _type gives exactly these types, also those that are left out unless they are named.
func TestTypeNarrowsAnExport(t *testing.T) {
	server := hapi(t)
	s := startSidecar(t, server.base, nil)
	for _, test := range []struct {
		path, query string
		types       []string
	}{
		{"$export", "_type=Patient", []string{"Patient"}},
		{"$export", "_type=Location,Medication&_type=PractitionerRole", []string{"Location", "Medication", "PractitionerRole"}},
		{"$export", "_type=Substance", []string{"Substance"}},
		{"Patient/$export", "_type=Patient,AllergyIntolerance", []string{"Patient", "AllergyIntolerance"}},
		{"Patient/$export", "_type=Device,Provenance,Group", []string{"Device", "Provenance", "Group"}},
		{"Patient/$export", "_type=AuditEvent", []string{"AuditEvent"}},
		{"Group/" + groupTen + "/$export", "_type=Patient,Condition", []string{"Patient", "Condition"}},
		{"Group/" + groupTen + "/$export", "_type=Provenance,Device,Person", []string{"Provenance", "Device", "Person"}},
		{"Group/" + groupNested + "/$export", "_type=Group,Patient", []string{"Group", "Patient"}},
	} {
		t.Run(test.path+"?"+test.query, func(t *testing.T) {
			result := s.export(t, test.path+"?"+test.query)
			equalSets(t, result.rows, expectedOf(t, server.data, test.path, result.manifest.TransactionTime, test.types...))
		})
	}
}

// Ensure _since gives what was written after it, to the millisecond and at each level: also rows whose Patient has
// not changed.
func TestSinceNarrowsAnExport(t *testing.T) {
	server := hapi(t)
	// A text of its own, since HAPI makes no version of an update without a change.
	text := "since " + time.Now().Format(time.RFC3339Nano)
	observation := func(id, patient string) []byte {
		return row(`{"resourceType":"Observation","id":%q,"status":"final","code":{"text":%q},"subject":{"reference":%q}}`, id, text, patient)
	}
	inside, outside := server.data.patient(0), server.data.patient(25)
	before := server.put(t, observation("e2e-since-before", inside))
	after := server.put(t, observation("e2e-since-after", inside))
	server.put(t, observation("e2e-since-outside", outside))
	server.put(t, row(`{"resourceType":"Condition","id":"e2e-two-condition","subject":{"reference":%q},"asserter":{"reference":%q},"code":{"text":%q}}`,
		server.data.patient(23), server.data.patient(3), text))
	since := before.Add(after.Sub(before) / 2).Truncate(time.Millisecond)
	if !since.After(before) || !since.Before(after) {
		t.Fatalf("the two writes at %v and %v are too close for a time between them", before, after)
	}

	s := startSidecar(t, server.base, nil)
	query := "?_since=" + url.QueryEscape(since.UTC().Format(instantLayout))
	all := set{"Observation/e2e-since-after": true, "Observation/e2e-since-outside": true, "Condition/e2e-two-condition": true}
	equalSets(t, s.export(t, "$export"+query).rows, all)
	equalSets(t, s.export(t, "Patient/$export"+query).rows, all)
	equalSets(t, s.export(t, "Group/"+groupTen+"/$export"+query).rows,
		set{"Observation/e2e-since-after": true, "Condition/e2e-two-condition": true})
	equalSets(t, s.export(t, "Patient/$export"+query+"&_type=Condition").rows, set{"Condition/e2e-two-condition": true})
}

// Ensure a finished export is still there after a stop and after a crash: the same files, with the same lines.
func TestFinishedExportSurvivesARestart(t *testing.T) {
	server := hapi(t)
	s := startSidecar(t, server.base, nil)
	before := s.export(t, "Patient/$export?_type=Patient,Condition")
	for _, end := range []struct {
		name string
		by   func(*testing.T)
	}{{"SIGTERM", s.stop}, {"SIGKILL", s.kill}} {
		end.by(t)
		s.restart(t)
		done, after, _ := s.poll(t, before.statusURL)
		if !done {
			t.Fatalf("after %s and a restart the export is not complete any more", end.name)
		}
		if !after.TransactionTime.Equal(before.manifest.TransactionTime) {
			t.Errorf("after %s and a restart the transaction time is %v, want %v", end.name, after.TransactionTime, before.manifest.TransactionTime)
		}
		equalRows(t, download(t, after), before.rows)
	}
}

// expectedOf picks the expectation by the level that the path names.
func expectedOf(t *testing.T, data *dataset, path string, at time.Time, types ...string) set {
	t.Helper()
	if id, ok := strings.CutPrefix(path, "Group/"); ok {
		return data.groupLevel(t, strings.TrimSuffix(id, "/$export"), at, types...)
	}
	if strings.HasPrefix(path, "Patient/") {
		return data.patientLevel(t, types...)
	}
	return data.system(types...)
}

// equalRows fails the test where two exports differ in a row or a byte.
func equalRows(t *testing.T, got, want map[string]json.RawMessage) {
	t.Helper()
	keys, differ := set{}, []string{}
	for key, line := range want {
		keys[key] = true
		if other := got[key]; other != nil && !bytes.Equal(other, line) {
			differ = append(differ, key)
		}
	}
	equalSets(t, got, keys)
	if len(differ) > 0 {
		t.Errorf("the second export differs in %d lines: %s", len(differ), summary(differ))
	}
}

// equalReads fails the test where a line is not, white space aside, what a read of the resource returns.
func equalReads(t *testing.T, server *hapiServer, rows map[string]json.RawMessage) {
	t.Helper()
	keys := make(chan string)
	var readers sync.WaitGroup
	for range readsAtOnce {
		readers.Go(func() {
			for key := range keys {
				equalRead(t, server, key, rows[key])
			}
		})
	}
	for _, key := range sample(rows) {
		keys <- key
	}
	close(keys)
	readers.Wait()
}

func equalRead(t *testing.T, server *hapiServer, key string, line json.RawMessage) {
	body, err := server.read(t.Context(), key)
	if err != nil {
		t.Error(err)
		return
	}
	var got, want bytes.Buffer
	if err := json.Compact(&got, line); err != nil {
		t.Errorf("%s: compact the line: %v", key, err)
	}
	if err := json.Compact(&want, body); err != nil {
		t.Errorf("%s: compact the read: %v", key, err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%s was exported as\n%.2000s\nwant, as a read returns it,\n%.2000s", key, got.Bytes(), want.Bytes())
	}
}

// sample takes some keys of each type, evenly spread, and all keys where E2E_FULL is set.
func sample(rows map[string]json.RawMessage) []string {
	byType := map[string][]string{}
	for key := range rows {
		byType[typeOf(key)] = append(byType[typeOf(key)], key)
	}
	most := readsPerType
	if os.Getenv("E2E_FULL") == "1" {
		most = len(rows)
	}
	var picked []string
	for _, keys := range byType {
		slices.Sort(keys)
		count := min(len(keys), most)
		for number := range count {
			picked = append(picked, keys[number*len(keys)/count])
		}
	}
	return picked
}

// checkTimes fails the test where the transaction time is before the kick-off, not a whole second, or before a row.
func checkTimes(t *testing.T, result *exported, kickedOff time.Time) {
	t.Helper()
	at := result.manifest.TransactionTime
	if at.Before(kickedOff) || !at.Equal(at.Truncate(time.Second)) {
		t.Errorf("transaction time %v, want a whole second after the kick-off at %v", at, kickedOff)
	}
	for key, line := range result.rows {
		if updated := lastUpdatedOf(t, line); updated.After(at) {
			t.Errorf("%s was updated at %v, after the transaction time %v", key, updated, at)
		}
	}
}
