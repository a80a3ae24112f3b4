package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// rowsOf downloads the output of a manifest, by Type/id.
func rowsOf(t *testing.T, manifest state.Manifest) map[string]string {
	t.Helper()
	rows := map[string]string{}
	for _, file := range manifest.Output {
		for line := range strings.Lines(ask(t, http.MethodGet, file.URL).body) {
			rows[keyOf(t, []byte(line))] = line
		}
	}
	return rows
}

// Ensure a client that follows the guide's pattern for Groups whose members change ends with what a full export gives: it
// compares the ids of the members with those that it has, fetches newcomers whole, and then what has changed.
func TestGroupPatternOfTheGuide(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 14)
	put := func(resource string) {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Error(err)
		}
	}
	s := startSidecar(t, upstream, nil)
	_, first := s.export("/Group/demo-group/$export")
	held := rowsOf(t, first)

	// Since then two have joined whose resources are older, a member has changed, and one has gained a record.
	member := func(id string) string { return `{"entity":{"reference":"Patient/` + id + `"}}` }
	patients := slices.Sorted(maps.Keys(held))
	patients = slices.DeleteFunc(patients, func(key string) bool { return !strings.HasPrefix(key, "Patient/") })
	var members []string
	for _, key := range patients {
		members = append(members, member(strings.TrimPrefix(key, "Patient/")))
	}
	at, err := time.Parse(time.RFC3339, first.TransactionTime)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the transaction time to be past", func() bool { return time.Now().After(at) })
	put(`{"resourceType":"Group","id":"demo-group","type":"person","actual":true,"member":[` + strings.Join(append(members, member("pat-00013"), member("pat-00014")), ",") + `]}`)
	put(`{"resourceType":"Patient","id":"pat-00001","active":false}`)
	put(`{"resourceType":"Observation","id":"new","status":"final","code":{},"subject":{"reference":"Patient/pat-00002"}}`)

	_, ids := s.export("/Group/demo-group/$export?_type=Patient&_elements=id")
	var newcomers []string
	for key, line := range rowsOf(t, ids) {
		var patient map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &patient); err != nil || patient["name"] != nil || patient["gender"] != nil {
			t.Errorf("%s holds more than was asked for: %v", key, err)
		}
		if held[key] == "" {
			newcomers = append(newcomers, `{"name":"patient","valueReference":{"reference":"`+key+`"}}`)
		}
	}
	if len(newcomers) != 2 {
		t.Fatalf("newcomers: got %d, want 2", len(newcomers))
	}
	joined := s.manifest(s.post("/Group/demo-group/$export", `{"resourceType":"Parameters","parameter":[`+strings.Join(newcomers, ",")+`]}`))
	_, changed := s.export("/Group/demo-group/$export?_since=" + first.TransactionTime)
	_, whole := s.export("/Group/demo-group/$export")
	of, want := rowsOf(t, joined), rowsOf(t, whole)
	for key, line := range want {
		if ofNewcomer := strings.Contains(line, "pat-00013") || strings.Contains(line, "pat-00014"); ofNewcomer && of[key] != line {
			t.Errorf("the newcomers' export lacks %s", key)
		}
	}
	if of["Patient/pat-00001"] != "" || want["Observation/new"] == "" {
		t.Errorf("the newcomers' export holds %q", slices.Sorted(maps.Keys(of)))
	}
	maps.Copy(held, of)
	maps.Copy(held, rowsOf(t, changed))
	if !maps.Equal(held, want) {
		t.Errorf("the union of the three:\n got %q\nwant %q", slices.Sorted(maps.Keys(held)), slices.Sorted(maps.Keys(want)))
	}
}
