package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure the setting reaches the client and the pipelines that read the bucket.
func TestManifestSettingChoosesTheShape(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	s := startSidecar(t, upstream, func(c *config) { c.Manifest = "4.0" })
	got := s.finish(s.kickOff("/$export"))
	stored, err := filepath.Glob(filepath.Join(s.config.filesFolder(), "*", "manifest.json"))
	if err != nil || len(stored) != 1 {
		t.Fatalf("stored manifests: %v, %v", stored, err)
	}
	inBucket, err := os.ReadFile(stored[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{got.body, string(inBucket)} {
		var manifest struct {
			ManifestType string            `json:"manifestType"`
			Request      string            `json:"request"`
			Output       []json.RawMessage `json:"output"`
			Outcome      []json.RawMessage `json:"outcome"`
		}
		if err := json.Unmarshal([]byte(body), &manifest); err != nil {
			t.Fatal(err)
		}
		if got.status != http.StatusOK || manifest.ManifestType == "" || manifest.Request != "" || manifest.Outcome == nil {
			t.Errorf("not a manifest of version 4: %s", body)
		}
		if len(manifest.Output) != len(sample.Types()) {
			t.Errorf("output: got %d files, want %d", len(manifest.Output), len(sample.Types()))
		}
	}
}
