package main

import (
	"net/http/httptest"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

// newSample serves a sample FHIR server with some generated patients below /fhir and returns its base. It offers few types where
// the personality names none: each costs an export several requests.
func newSample(t *testing.T, personality fhirtest.Personality, patients int) (*fhirtest.Server, string) {
	t.Helper()
	return newSampleAt(t, personality, "/fhir", patients)
}

func newSampleAt(t *testing.T, personality fhirtest.Personality, path string, patients int) (*fhirtest.Server, string) {
	t.Helper()
	if personality.Types == nil {
		personality.Types = fhirtest.FewTypes()
	}
	sample := fhirtest.New(personality, path)
	for _, resource := range fhirtest.Generate(1, patients) {
		if err := sample.Put(resource); err != nil {
			t.Fatal(err)
		}
	}
	upstream := httptest.NewServer(sample)
	t.Cleanup(upstream.Close)
	return sample, upstream.URL + path
}
