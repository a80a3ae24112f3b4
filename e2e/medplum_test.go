package e2e

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Ensure Medplum's client, which posts its kick-off with the parameters in the address and no body, gets the export that
// others get.
func TestMedplumClient(t *testing.T) {
	folder := filepath.Join("clients", "medplum")
	if err := installNPM(folder); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) []byte {
		t.Helper()
		command := exec.CommandContext(t.Context(), "node", args...)
		command.Dir = folder
		var stderr strings.Builder
		command.Stderr = &stderr
		output, err := command.Output()
		if err != nil {
			t.Fatalf("node: %v\n%s%s", err, output, stderr.String())
		}
		return output
	}
	for name, test := range map[string]struct{ upstream, since string }{
		"sample": {startSample(t, 30).base, sampleSince},
		"HAPI":   {hapi(t).base, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSidecar(t, test.upstream, nil)
			const types = "Patient,Condition"
			var got manifest
			if err := json.Unmarshal(run("export.mjs", s.base, types, test.since), &got); err != nil {
				t.Fatalf("what the client returns: %v", err)
			}
			if want := s.base + "/$export"; got.Request != want {
				t.Errorf("request: got %q, want that of a POST, %q", got.Request, want)
			}
			query := "$export?_type=" + types
			if test.since != "" {
				query += "&_since=" + test.since
			}
			want := s.export(t, query)
			if len(want.rows) == 0 {
				t.Error("the export is empty")
			}
			equalRows(t, download(t, got), want.rows)
		})
	}
}
