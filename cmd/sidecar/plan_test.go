package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure plan shows what an export would cost, for each level, and asks for no page of rows beyond its samples.
func TestPlanShowsCostsAndWritesNothing(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 20)
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"system":  {nil, []string{"system export of Plain FHIR Server", "Observation", "keyset", "all", "minutes"}},
		"patient": {[]string{"-level", "patient"}, []string{"patient export", "Observation"}},
		"group":   {[]string{"-level", "group", "-group", "demo-group"}, []string{"members: ", "Patient"}},
		"types":   {[]string{"-type", "Patient"}, []string{"Patient", "20", "0 types have no rows"}},
		"since":   {[]string{"-since", "2090-01-01T00:00:00Z", "-type", "Patient"}, []string{"1 types have no rows"}},
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
