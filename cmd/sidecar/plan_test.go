package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure plan shows what an export would cost, for each level, and asks for no page of rows beyond its samples.
func TestPlanShowsCostsAndWritesNothing(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 20)
	soon := time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339) // within the leeway of a kick-off
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"system":  {nil, []string{"system export of Plain FHIR Server", "Observation", "keyset: in time windows", "all", "minutes"}},
		"patient": {[]string{"-level", "patient"}, []string{"patient export", "Observation", "refer to in Device"}},
		"group":   {[]string{"-level", "group", "-group", "demo-group"}, []string{"members: ", "Patient"}},
		"types":   {[]string{"-type", "Patient"}, []string{"Patient", "20"}},
		"since":   {[]string{"-since", soon, "-type", "Patient"}, []string{"1 type has no rows"}},
		"date":    {[]string{"-since", "2021-12", "-type", "Patient"}, []string{"Patient", "20"}},
	} {
		t.Run(name, func(t *testing.T) {
			sample.ResetRequests()
			folder := t.TempDir()
			t.Setenv("TMPDIR", folder)
			var out bytes.Buffer
			args := append([]string{"plan", "-upstream", upstream, "-data", filepath.Join(folder, "data")}, test.args...)
			if err := run(t.Context(), args, &out, io.Discard); err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
			if left, err := os.ReadDir(folder); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			for _, request := range sample.Requests() {
				if request.Method != "GET" && !strings.HasSuffix(request.Path, "/_search") { // a search may be a form
					t.Errorf("plan sent a %s", request.Method)
				}
			}
		})
	}
}

// Ensure plan refuses flags that do not fit together.
func TestPlanRefusesWhatDoesNotFit(t *testing.T) {
	for _, args := range [][]string{
		{"-level", "galaxy"}, {"-level", "group"}, {"-group", "g"}, {"-since", "yesterday"},
	} {
		args = append([]string{"plan", "-upstream", "http://127.0.0.1:1/fhir"}, args...)
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

// planned is what `sidecar plan` prints.
func planned(t *testing.T, upstream string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"plan", "-upstream", upstream, "-data", filepath.Join(t.TempDir(), "data")}, args...), &out, io.Discard)
	return out.String(), err
}

// Ensure plan shows the remarks that an increment of a Group makes before its first page: who has left it.
func TestPlanShowsWhoHasLeftTheGroup(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 5)
	put := func(group string) {
		if err := sample.Put([]byte(group)); err != nil {
			t.Fatal(err)
		}
	}
	put(`{"resourceType":"Group","id":"g","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/pat-00001"}},{"entity":{"reference":"Patient/pat-00002"}}]}`)
	since := time.Now().UTC().Add(10 * time.Millisecond)
	until(t, "the next version", func() bool { return time.Now().After(since.Add(10 * time.Millisecond)) })
	put(`{"resourceType":"Group","id":"g","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/pat-00001"}}]}`)
	out, err := planned(t, upstream, "-level", "group", "-group", "g", "-since", since.Format("2006-01-02T15:04:05.000Z07:00"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "members: 1\n") || !strings.Contains(out, "Remark: 1 patient has left the Group") {
		t.Errorf("no word on who has left:\n%s", out)
	}
}

// Ensure plan refuses what a kick-off refuses.
func TestPlanChecksWhatAKickOffChecks(t *testing.T) {
	personality := fhirtest.Plain()
	personality.Types = fhirtest.AllTypes() // to be refused for another reason than that the server has not got the type
	_, upstream := newSample(t, personality, 2)
	for want, args := range map[string][]string{
		"does not know this Group":                     {"-level", "group", "-group", "nope"},
		"_since is in the future":                      {"-since", "9021-12"},
		"-since is not an instant such as":             {"-since", "yesterday"},
		`no search of the type "Foo"`:                  {"-type", "Observation,Foo"},
		"Organization in _type is not part of":         {"-level", "patient", "-type", "Organization"},
		"name it beside a type that is":                {"-level", "patient", "-type", "Practitioner"},
		"ValueSet in _type is not part of the Patient": {"-level", "group", "-group", "demo-group", "-type", "Patient,ValueSet"},
	} {
		if out, err := planned(t, upstream, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q; printed:\n%s", args, err, want, out)
		}
	}
}

// Ensure a type of which only what is referred to is exported does not stand in the table as if it were read whole.
func TestPlanDoesNotCountReferencedTypesAsWhole(t *testing.T) {
	_, upstream := newSample(t, fhirtest.Plain(), 5)
	out, err := planned(t, upstream, "-level", "patient", "-type", "Patient,Practitioner")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "\nPractitioner ") || !strings.Contains(out, "refer to in Practitioner goes along") {
		t.Errorf("Practitioner is planned as a whole type:\n%s", out)
	}
}

// Ensure plan does not say that an export costs nothing where the server does not count.
func TestPlanOnAServerThatDoesNotCount(t *testing.T) {
	for _, personality := range []fhirtest.Personality{fhirtest.Google(), fhirtest.Oracle()} {
		t.Run(personality.Name, func(t *testing.T) {
			_, upstream := newSample(t, personality, 12)
			out, err := planned(t, upstream, "-level", "patient", "-type", "Observation,Immunization")
			if err != nil {
				t.Fatal(err)
			}
			all := regexp.MustCompile(`(?m)^all +\d+ +\? +at least [1-9]\d* +\? *$`)
			if !all.MatchString(out) || strings.Contains(out, "0.0 minutes") || !strings.Contains(out, "lower bound") {
				t.Errorf("the cost is said to be known:\n%s", out)
			}
			if personality.RequirePatient && !regexp.MustCompile(`(?m)^Immunization .* at least (1[2-9]|[2-9]\d) `).MatchString(out) {
				t.Errorf("a search for each Patient is known to be needed:\n%s", out)
			}
		})
	}
}
