package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// checked runs `sidecar check` and returns what it prints.
func checked(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"check"}, args...), &out, io.Discard)
	return out.String(), err
}

// columns are the gaps between the columns of the findings.
var columns = regexp.MustCompile(` {2,}`)

// Ensure check says what a server lacks and what follows from it.
func TestCheckSaysWhatAServerLacks(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(*fhirtest.Personality)
		want string
	}{
		"nothing":     {func(*fhirtest.Personality) {}, "ok P8 history of a type yes exports are exact as of the transaction time"},
		"lastUpdated": {func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true }, "note P2 filters by _lastUpdated no types are read through the server's own pages"},
		"summary":     {func(p *fhirtest.Personality) { p.NoSummaryCount = true }, "ok P1 counts rows, with filters by _total=accurate every slice is counted again"},
		"count":       {func(p *fhirtest.Personality) { p.IgnoreEverything = true }, "note P1 counts rows, with filters no completeness cannot be verified"},
		"pages":       {func(p *fhirtest.Personality) { p.IgnoreEverything = true }, "P4 compares milliseconds no it makes no difference: there are no time windows"},
		"forced":      {func(p *fhirtest.Personality) { p.Compartments = fhirtest.OwnTypes }, "in a compartment yes not used unless strategy: compartment is forced"},
		"history":     {func(p *fhirtest.Personality) { p.NoHistory = true }, "note P8 history of a type no deletions cannot be reported"},
	} {
		t.Run(name, func(t *testing.T) {
			personality := fhirtest.Plain()
			test.edit(&personality)
			_, upstream := newSample(t, personality, 5)
			got, err := checked(t, "-upstream", upstream, "-data", t.TempDir())
			if plain := columns.ReplaceAllString(got, " "); err != nil || !strings.Contains(plain, test.want) {
				t.Errorf("%v: no line %q in\n%s", err, test.want, got)
			}
			if strings.Contains(got, "completeness cannot be verified") && strings.Contains(got, "verified by counting") {
				t.Errorf("a server that does not count is counted on:\n%s", got)
			}
		})
	}
}

// Ensure check names each fault, says what to do, and ends with an error.
func TestCheckNamesFaults(t *testing.T) {
	answer := func(body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/fhir+json")
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(server.Close)
		return server.URL + "/fhir"
	}
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		upstream, data, want string
	}{
		"down":           {"http://127.0.0.1:1/fhir", t.TempDir(), "FAULT upstream: no CapabilityStatement"},
		"html":           {answer("<html>log in</html>"), t.TempDir(), "FAULT upstream: no CapabilityStatement"},
		"STU3":           {answer(`{"resourceType":"CapabilityStatement","fhirVersion":"3.0.2","rest":[{"mode":"server"}]}`), t.TempDir(), "FAULT FHIR version"},
		"data no folder": {upstream, filepath.Join(file, "data"), "FAULT data folder"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := checked(t, "-upstream", test.upstream, "-data", test.data)
			if !errors.Is(err, errCheck) || !strings.Contains(got, test.want) {
				t.Errorf("%v: no line %q in\n%s", err, test.want, got)
			}
		})
	}
}

// Ensure check says that the server has the operation itself, and that a sidecar runs on the data folder.
func TestCheckNotes(t *testing.T) {
	own := `{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1","rest":[{"mode":"server","operation":[{"name":"export"}]}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, own) }))
	defer server.Close()
	data := t.TempDir()
	store, err := state.Open(filepath.Join(data, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	got, err := checked(t, "-upstream", server.URL, "-data", data)
	for _, want := range []string{"note  upstream declares an $export of its own: set intercept: false", "its state is in use"} {
		if !strings.Contains(got, want) {
			t.Errorf("%v: no line %q in\n%s", err, want, got)
		}
	}
}
