package fhirtest_test

import (
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

func TestLimitsOfLists(t *testing.T) {
	u := start(t, with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.MaxOrValues, p.MaxURLBytes = 3, 60 }))
	u.cohort()
	for path, want := range map[string]int{
		"/Patient?_id=p1,p2,p3": 200, "/Patient?_id=p1,p2,p3,p4": 400,
		"/Patient?_id=" + strings.Repeat("x", 42): 200, "/Patient?_id=" + strings.Repeat("x", 43): 414,
	} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	if got := u.do("POST", "/Patient/_search", "_id="+strings.Repeat("x", 100), form).status; got != http.StatusOK {
		t.Errorf("form: got %d, want 200: it is not in the address", got)
	}
	if got := u.do("POST", "/Patient/_search", "_id=a,b,c,d", form).status; got != http.StatusBadRequest {
		t.Errorf("long list in a form: got %d", got)
	}
}

func TestOutcomeInsideASearchset(t *testing.T) {
	for _, severity := range []string{"information", "warning", "error", "fatal"} {
		for _, base := range fhirtest.All() {
			u := start(t, with(base, func(p *fhirtest.Personality) { p.OutcomeFirst = severity }))
			u.patients(3)
			u.CatchUp()
			_, pages := u.pagesOf("/Patient?_count=2")
			for _, b := range pages {
				first := b.Entry[0]
				if first.Search.Mode != "outcome" || !strings.Contains(string(first.Resource), `"`+severity+`"`) {
					t.Fatalf("%s: a page begins with %s", base.Name, first.Resource)
				}
			}
		}
	}
}

func TestLinkEntriesNameRowsOnly(t *testing.T) {
	u := start(t, with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.LinkEntries = true }))
	u.patients(2)
	b := u.get("/Patient")
	if len(b.Entry) != 2 || b.Entry[0].Resource != nil || b.Entry[0].FullURL != u.base+"/Patient/p1" || b.Entry[0].Search.Mode != "match" {
		t.Errorf("got %+v", b.Entry)
	}
}

func TestElementsAreSubsetted(t *testing.T) {
	for _, p := range fhirtest.All() {
		if p.IgnoreEverything {
			continue
		}
		u := start(t, p)
		u.put(`{"resourceType":"Patient","id":"p1","meta":{"tag":[{"code":"mine"}]},"active":true,"gender":"other"}`)
		u.put(`{"resourceType":"Patient","id":"p2","active":true,"gender":"other"}`)
		u.CatchUp()
		rows, pages := u.pagesOf("/Patient?_elements=id,active&_count=1")
		if len(rows) != 2 {
			t.Fatalf("%s: got %v", p.Name, rows)
		}
		for _, b := range pages {
			body := string(b.Entry[0].Resource)
			for part, want := range map[string]bool{`"SUBSETTED"`: true, `"active"`: true, `"gender"`: false, `"mine"`: headOf(t, b.Entry[0].Resource).ID == "p1", `"lastUpdated"`: true} {
				if strings.Contains(body, part) != want {
					t.Errorf("%s: %s in %s: got %t", p.Name, part, body, !want)
				}
			}
		}
	}
}

func TestChainsAndModifiers(t *testing.T) {
	u := start(t, fhirtest.Plain())
	u.cohort()
	u.put(`{"resourceType":"Observation","id":"o6","subject":{"reference":"Patient/p3"}}`)
	u.put(`{"resourceType":"Provenance","id":"v1","target":[{"reference":"Observation/o1"},{"reference":"Patient/p3"}]}`)
	for path, want := range map[string]string{
		"/Observation?patient:Patient._has:Group:member:_id=g1":               "o1 o6",
		"/Observation?subject:Patient._has:Group:member:_id=g1":               "o1 o6",
		"/Observation?subject:Patient._has:Group:member:_id=nope":             "",
		"/Observation?subject:Patient._has:Group:member:_id=g1&performer=p2":  "o1",
		"/Provenance?target=Observation/o1":                                   "v1",
		"/Provenance?target=Observation/o2":                                   "",
		"/Provenance?patient=p3":                                              "v1",
		"/Observation?subject:missing=true":                                   "o4",
		"/Observation?subject:Patient._has:Group:member:_id=g1&_sort=-_id":    "o6 o1",
		"/Observation?performer:Patient._has:Group:member:_id=g1,nope&_id=o1": "",
	} {
		if got := u.get(path, "Prefer: handling=strict").ids(t); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	u = start(t, with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHas, p.NoMissing = true, true }))
	u.cohort()
	for _, path := range []string{
		"/Patient?_has:Group:member:_id=g1", "/Observation?subject:Patient._has:Group:member:_id=g1", "/Observation?subject:missing=true",
	} {
		if got := u.do("GET", path, "", "Prefer: handling=strict").status; got != http.StatusBadRequest {
			t.Errorf("%s: got %d, want 400", path, got)
		}
	}
}

// Ensure that a gate lets a client read what it says: types by a status, rows without a word.
func TestGate(t *testing.T) {
	u := start(t, fhirtest.Plain())
	u.put(patientP1, true)
	u.put(`{"resourceType":"Patient","id":"p2"}`)
	u.put(`{"resourceType":"Basic","id":"b1","code":{}}`)
	access := &fhirtest.Access{}
	u.Gate = func(*http.Request) *fhirtest.Access { return access }
	for _, step := range []struct {
		access *fhirtest.Access
		path   string
		status int
		ids    string
	}{
		{&fhirtest.Access{}, "/Patient", 200, "p1 p2"},
		{nil, "/Patient", 401, ""},
		{nil, "/metadata", 200, ""},
		{&fhirtest.Access{Types: []string{"Patient"}}, "/Patient", 200, "p1 p2"},
		{&fhirtest.Access{Types: []string{"Patient"}}, "/Basic", 403, ""},
		{&fhirtest.Access{Types: []string{"Patient"}}, "/Basic/b1", 403, ""},
		{&fhirtest.Access{Sees: func(_, id string) bool { return id != "p1" }}, "/Patient", 200, "p2"},
	} {
		access = step.access
		got := u.do("GET", step.path, "")
		if got.status != step.status {
			t.Errorf("%s: got %d, want %d", step.path, got.status, step.status)
		}
		if step.ids != "" {
			if ids := u.get(step.path).ids(t); ids != step.ids {
				t.Errorf("%s: got %q, want %q", step.path, ids, step.ids)
			}
		}
	}
}
