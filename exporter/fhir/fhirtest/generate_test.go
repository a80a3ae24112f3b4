package fhirtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

func TestGenerateRepeatsItself(t *testing.T) {
	a, b, c := fhirtest.Generate(1, 40), fhirtest.Generate(1, 40), fhirtest.Generate(2, 40)
	join := func(rows [][]byte) string { return string(bytes.Join(rows, []byte("\n"))) }
	if join(a) != join(b) || join(a) == join(c) {
		t.Error("the seed does not decide")
	}
	types := map[string]int{}
	names := map[string]bool{}
	for _, row := range a {
		if !json.Valid(row) || bytes.Contains(row, []byte("%!")) {
			t.Fatalf("not JSON: %s", row)
		}
		h := headOf(t, row)
		types[h.ResourceType]++
		if names[h.ResourceType+"/"+h.ID] {
			t.Errorf("%s/%s twice", h.ResourceType, h.ID)
		}
		names[h.ResourceType+"/"+h.ID] = true
	}
	for _, typ := range []string{
		"AllergyIntolerance", "Condition", "Device", "Encounter", "Group", "Immunization", "Observation", "Organization", "Patient", "Practitioner", "Provenance",
	} {
		if types[typ] == 0 {
			t.Errorf("no %s", typ)
		}
	}
	if types["Patient"] != 40 || types["Group"] != 3 {
		t.Errorf("got %v", types)
	}
}

// Ensure that on HAPI every reference is found: targets come before the rows that name them.
func TestGeneratedGroupIsComplete(t *testing.T) {
	u := start(t, fhirtest.HAPI())
	for _, row := range fhirtest.Generate(1, 40) {
		if err := u.Put(row); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(strings.Fields(u.get("/Patient?_has:Group:member:_id=demo-group").ids(t))); got != 9 {
		t.Errorf("demo-group: got %d Patients", got)
	}
	var group struct{ Member []json.RawMessage }
	if err := json.Unmarshal(u.do("GET", "/Group/demo-group", "").body, &group); err != nil || len(group.Member) != 10 {
		t.Errorf("demo-group: got %d members, %v", len(group.Member), err)
	}
	for _, path := range []string{"/Observation?patient:missing=true", "/Condition?patient:missing=true", "/AllergyIntolerance?patient:missing=true"} {
		if got := u.get(path).ids(t); got != "" {
			t.Errorf("%s: got %q", path, got)
		}
	}
}

func BenchmarkPage(b *testing.B) {
	s := fhirtest.New(fhirtest.Plain(), "/fhir")
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 40_000 {
		row := fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%d","status":"final","subject":{"reference":"Patient/p%d"}}`, i, i%100)
		if err := s.PutAt(row, at.Add(time.Duration(i)*time.Second)); err != nil {
			b.Fatal(err)
		}
	}
	for _, query := range []string{"_lastUpdated=ge2024-01-03&_lastUpdated=lt2024-01-05&_sort=_lastUpdated&_count=500", "patient=p1,p2&_count=500", "_summary=count"} {
		b.Run(query, func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/fhir/Observation?"+query, nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
		})
		s.ResetRequests()
	}
}
