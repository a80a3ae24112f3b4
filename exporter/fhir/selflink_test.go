package fhir_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"sidecar/exporter/fhir"
)

// Ensure a page counts only when its self link repeats what the filter asks for.
func TestFilterHasToStandInTheSelfLink(t *testing.T) {
	for _, test := range []struct {
		name, filter, self string
		applied            bool
	}{
		{"no filter", "", "", true},
		{"repeated", "status=final", "http://x/Observation?status=final&_count=10", true},
		{"other order and encoding", "code=http://loinc.org|1%2C2&status=final", "http://x/Observation?_count=9&status=final&code=http%3A%2F%2Floinc.org%7C1%2C2", true},
		{"relative", "status=final", "Observation?status=final", true},
		{"query alone", "status=final", "?status=final", true},
		{"plus as a blank", "date=ge2020-01-01T00:00:00%2B00:00", "http://x/Observation?date=ge2020-01-01T00:00:00+00:00", true},
		{"twice", "date=ge2020&date=lt2021", "http://x/Observation?date=ge2020&date=lt2021", true},
		{"one of two", "date=ge2020&date=ge2020", "http://x/Observation?date=ge2020", false},
		{"no self link", "status=final", "", false},
		{"dropped", "status=final", "http://x/Observation?_count=10", false},
		{"another value", "status=final", "http://x/Observation?status=amended", false},
		{"another modifier", "status:not=final", "http://x/Observation?status=final", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = fmt.Fprintf(w, `{"resourceType":"Bundle","type":"searchset","link":[{"relation":"self","url":%q}]}`, test.self) // the client sees what is missing
			}))
			defer server.Close()
			client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			page, err := client.Search(t.Context(), fhir.Query{Type: "Observation", Filter: fhir.ParseCriteria(test.filter)})
			if err != nil {
				t.Fatal(err)
			}
			if err := page.Each(func(*fhir.Entry) error { return nil }); errors.Is(err, fhir.ErrNotApplied) == test.applied || !errors.Is(err, fhir.ErrNotApplied) && err != nil {
				t.Errorf("the page ends with %v", err)
			}
		})
	}
}

func TestParseCriteriaKeepsOrderAndReadsAnyEncoding(t *testing.T) {
	got := fhir.ParseCriteria("code=http://loinc.org%7C12&&date=ge2020%2B01&broken=100%&flag")
	want := []fhir.QueryParam{{Name: "code", Value: "http://loinc.org|12"}, {Name: "date", Value: "ge2020+01"}, {Name: "broken", Value: "100%"}, {Name: "flag"}}
	if !slices.Equal(got, want) {
		t.Errorf("criteria are %+v, want %+v", got, want)
	}
}
