package fhir_test

import (
	"slices"
	"testing"

	"sidecar/exporter/fhir"
)

func elements(t testing.TB, version string) *fhir.ElementTable {
	t.Helper()
	table, err := fhir.Elements(version)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// Ensure root elements are known as the releases define them, and nothing below them is.
func TestElementsKnowTheReleases(t *testing.T) {
	for _, test := range []struct {
		typ, element string
		r4, r4b, r5  bool
	}{
		{"Patient", "id", true, true, true},
		{"Patient", "birthDate", true, true, true},
		{"Patient", "_birthDate", false, false, false},
		{"Patient", "name.family", false, false, false},
		{"Patient", "family", false, false, false},
		{"Patient", "resourceType", false, false, false},
		{"Patient", "", false, false, false},
		{"Patient", "deceased", true, true, true},
		{"Observation", "value", true, true, true},
		{"Observation", "value[x]", true, true, true},
		{"Observation", "valueQuantity", true, true, true},
		{"Observation", "valueAttachment", false, false, true},
		{"Observation", "birthDate", false, false, false},
		{"Encounter", "class", true, true, true},
		{"Encounter", "classHistory", true, true, false},
		{"Media", "content", true, true, false},
		{"Citation", "url", false, true, true},
		{"Nothing", "id", false, false, false},
		{"DomainResource", "id", false, false, false},
		{"", "birthDate", true, true, true},
		{"", "birthdate", false, false, false},
	} {
		for version, want := range map[string]bool{"4.0.1": test.r4, "4.1.0": test.r4b, "4.3.0": test.r4b, "5.0.0": test.r5} {
			if got := elements(t, version).Known(test.typ, test.element); got != want {
				t.Errorf("%s: %q of %q is known: %t, want %t", version, test.element, test.typ, got, want)
			}
		}
	}
}

// Ensure the mandatory elements are those of the definitions.
func TestElementsKnowWhatIsMandatory(t *testing.T) {
	for _, test := range []struct {
		version, typ string
		want         []string
	}{
		{"4.0.1", "Patient", nil},
		{"4.0.1", "Observation", []string{"status", "code"}},
		{"4.0.1", "Encounter", []string{"status", "class"}},
		{"5.0.0", "Encounter", []string{"status"}},
		{"4.3.0", "MedicationRequest", []string{"status", "intent", "medication", "subject"}},
		{"4.0.1", "Immunization", []string{"status", "vaccineCode", "patient", "occurrence"}},
		{"4.0.1", "Nothing", nil},
	} {
		if got := elements(t, test.version).Mandatory(test.typ); !slices.Equal(got, test.want) {
			t.Errorf("%s: mandatory in %s are %v, want %v", test.version, test.typ, got, test.want)
		}
	}
}

// Ensure there is no table for a release that has none of its own.
func TestElementsOfAnotherRelease(t *testing.T) {
	for _, version := range []string{"", "3.0.2", "4.2.0", "4.6.0", "6.0.0", "x"} {
		if _, err := fhir.Elements(version); err == nil {
			t.Errorf("there is a table for %q", version)
		}
	}
}
