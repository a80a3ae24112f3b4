package fhir_test

import (
	"errors"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

func TestMemberBelongsWithinItsPeriod(t *testing.T) {
	for _, test := range []struct {
		member string
		want   bool // at noon of 2024-05-01, UTC
	}{
		{`{}`, true},
		{`{"inactive":false}`, true},
		{`{"inactive":true}`, false},
		{`{"period":{"start":"2024-05-01"}}`, true},
		{`{"period":{"start":"2024-05-02"}}`, false},
		{`{"period":{"start":"2024-05-01T12:00:00Z"}}`, true},
		{`{"period":{"start":"2024-05-01T12:00:01Z"}}`, false},
		{`{"period":{"start":"2024-05-01T14:00:00+02:00"}}`, true},
		{`{"period":{"end":"2024"}}`, true},
		{`{"period":{"end":"2024-05"}}`, true},
		{`{"period":{"end":"2024-05-01"}}`, true},
		{`{"period":{"end":"2024-04-30"}}`, false},
		{`{"period":{"end":"2024-05-01T12:00:00Z"}}`, true},
		{`{"period":{"end":"2024-05-01T11:59:59Z"}}`, false},
		{`{"period":{"start":"2024","end":"2023"}}`, false},
		{`{"period":{"start":"2024-05-01"},"inactive":true}`, false},
	} {
		group, err := fhir.ParseGroup([]byte(`{"resourceType":"Group","member":[` + test.member + `]}`))
		if err != nil || len(group.Members) != 1 {
			t.Errorf("%s: %+v, %v", test.member, group, err)
			continue
		}
		if got := group.Members[0].ActiveAt(when); got != test.want {
			t.Errorf("%s: active %v, want %v", test.member, got, test.want)
		}
	}
}

// Ensure a Group that cannot be read exactly is an error: a guess would export a patient too many or too few.
func TestParseGroupRefusesWhatItCannotRead(t *testing.T) {
	for _, resource := range []string{
		``, `null`, `{"resourceType":"Patient"}`, `{"resourceType":"Group","member":{}}`, `{"resourceType":"Group","member":["x"]}`,
		`{"resourceType":"Group","member":[{"period":{"start":"yesterday"}}]}`,
		`{"resourceType":"Group","member":[{"period":{"end":"2024-02-30"}}]}`,
		`{"resourceType":"Group","member":[{"inactive":"yes"}]}`,
	} {
		if group, err := fhir.ParseGroup([]byte(resource)); !errors.Is(err, fhir.ErrMalformed) || group != nil {
			t.Errorf("%s: %+v, %v; want ErrMalformed", resource, group, err)
		}
	}
	group, err := fhir.ParseGroup([]byte(`{"resourceType":"Group","characteristic":[{}]}`))
	if err != nil || !group.Characteristic || len(group.Members) != 0 {
		t.Errorf("%+v, %v", group, err)
	}
}

func TestLocalReferenceIsOnlyOfThisServer(t *testing.T) {
	bases := []string{"http://up.example/fhir", "https://public.example/r4"}
	for reference, want := range map[string]string{
		"Patient/1":                                     "1",
		"Patient/a-b.C":                                 "a-b.C",
		"Patient/1/_history/2":                          "1",
		"http://up.example/fhir/Patient/1":              "1",
		"https://public.example/r4/Patient/1":           "1",
		"http://up.example/fhir/Patient/1/_history/2":   "1",
		"http://other.example/fhir/Patient/1":           "",
		"http://up.example/fhir2/Patient/1":             "",
		"http://up.example/fhir/x/Patient/1":            "",
		"Observation/1":                                 "",
		"x/Patient/1":                                   "",
		"Patient/1/":                                    "",
		"Patient/":                                      "",
		"Patient":                                       "",
		"Patient/1/_history/":                           "",
		"#Patient/1":                                    "",
		"urn:uuid:b8a6a9a2-0000-4000-8000-6e6f6e656e6f": "",
		"": "",
	} {
		if id, ok := fhir.LocalReference("Patient", reference, bases); ok != (want != "") || ok && id != want {
			t.Errorf("%q: %q, %v; want %q", reference, id, ok, want)
		}
	}
}

func TestParseInstantTakesInstantsOnly(t *testing.T) {
	for text, want := range map[string]string{
		"2024-05-01T12:00:00Z":                "2024-05-01T12:00:00Z",
		"2024-05-01T12:00:00.5Z":              "2024-05-01T12:00:00.5Z",
		"2024-05-01T14:00:00.123456789+02:00": "2024-05-01T12:00:00.123456789Z",
		"2024-05-01T12:00:00+00:00":           "2024-05-01T12:00:00Z",
		"2024-02-29T00:00:00-14:00":           "2024-02-29T14:00:00Z",
		"2024-05-01":                          "",
		"2024-05-01T12:00:00":                 "",
		"2024-05-01T12:00Z":                   "",
		"2024-05-01 12:00:00Z":                "",
		"2024-05-01T2:00:00Z":                 "",
		"2024-05-01T12:00:00,5Z":              "",
		"2024-05-01T12:00:00.1234567891Z":     "",
		"2023-02-29T00:00:00Z":                "",
		"0000-01-01T00:00:00Z":                "",
		"":                                    "",
	} {
		got, err := fhir.ParseInstant(text)
		if want == "" && err == nil || want != "" && (err != nil || got.Format(time.RFC3339Nano) != want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
	if got, want := fhir.FormatInstant(time.Date(2024, 5, 1, 14, 0, 0, 1_999_999, time.FixedZone("", 7200))), "2024-05-01T12:00:00.001Z"; got != want {
		t.Errorf("wrote %s, want %s", got, want)
	}
}
