package fhir_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// searched serves a few Patients and returns a client and the server.
func searched(t *testing.T) (*fhir.Client, *fhirtest.Server) {
	t.Helper()
	sample := fhirtest.New(fhirtest.HAPI(), "/fhir")
	for _, id := range []string{"a", "b", "c"} {
		if err := sample.Put([]byte(`{"resourceType":"Patient","id":"` + id + `"}`)); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(sample)
	t.Cleanup(server.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	return client, sample
}

// Ensure a search that is sent as a form has nothing in its address: one server ignores the form where it has.
func TestSearchAsAForm(t *testing.T) {
	client, sample := searched(t)
	q := fhir.Query{Type: "Patient", Count: 10, Sort: "_lastUpdated", From: time.Now().Add(-time.Hour), Post: true}
	q = q.With(fhir.QueryParam{Name: "_id", Value: "a,c"})
	page, err := client.Search(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	ids := ""
	if err := page.Each(func(row *fhir.Entry) error { ids += row.ID; return nil }); err != nil || ids != "ac" {
		t.Errorf("got %q, %v, want ac", ids, err)
	}
	if n, err := client.Count(t.Context(), q); err != nil || n != 2 {
		t.Errorf("counted %d, %v, want 2", n, err)
	}
	for _, request := range sample.Requests() {
		if request.Method != "POST" || request.RawQuery != "" || request.Path != "/fhir/Patient/_search" || request.Form == "" {
			t.Errorf("%s %s?%s with the form %q", request.Method, request.Path, request.RawQuery, request.Form)
		}
	}
}

// Ensure a search in a compartment asks below the Patient.
func TestSearchInACompartment(t *testing.T) {
	client, sample := searched(t)
	_, err := client.Search(t.Context(), fhir.Query{Type: "Observation", Patient: "a b", Count: 5})
	if fhir.StatusOf(err) == 0 {
		t.Fatalf("%v, want a refusal: the sample server has no compartments", err)
	}
	if got := sample.Requests()[len(sample.Requests())-1].Path; got != "/fhir/Patient/a b/Observation" {
		t.Errorf("asked for %s", got)
	}
}

// Ensure one resource is read as a search would give it, and that one that is not there says so.
func TestReadEntry(t *testing.T) {
	client, sample := searched(t)
	row, err := client.ReadEntry(t.Context(), "Patient", "b")
	if err != nil || row.Type != "Patient" || row.ID != "b" || row.Version != "1" || row.LastUpdated.IsZero() ||
		string(row.Resource) != string(sample.Resources("Patient")[1]) {
		t.Errorf("%+v, %v", row, err)
	}
	if _, err := client.ReadEntry(t.Context(), "Patient", "nobody"); fhir.StatusOf(err) != 404 {
		t.Errorf("%v, want status 404", err)
	}
}

// Ensure the code of a severe outcome is named, what is not a code is not, and what cannot be read is severe.
func TestSevereCode(t *testing.T) {
	for _, test := range []struct {
		outcome, code string
		severe        bool
	}{
		{`{"issue":[{"severity":"warning","code":"incomplete"}]}`, "", false},
		{`{"issue":[{"severity":"warning","code":"x"},{"severity":"fatal","code":"too-costly"}]}`, "too-costly", true},
		{`{"issue":[{"severity":"error","code":"Jane Doe, born 1970"}]}`, "exception", true},
		{`{"issue":[{"severity":"error","code":"made-up"}]}`, "exception", true},
		{`{"issue":`, "exception", true},
		{`{}`, "", false},
	} {
		if code, severe := fhir.SevereCode([]byte(test.outcome)); code != test.code || severe != test.severe {
			t.Errorf("%s: %q, %v", test.outcome, code, severe)
		}
	}
	if !fhir.IsWarning([]byte(`{"issue":[{"severity":"warning"}]}`)) || fhir.IsWarning([]byte(`{"issue":[{"severity":"information"}]}`)) {
		t.Error("a warning is taken for none, or a remark for one")
	}
}
