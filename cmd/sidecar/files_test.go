package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure the form of version 4 reaches the client and the pipelines that read the bucket, by the setting.
func TestManifestSettingChoosesTheShape(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	s := startSidecar(t, upstream, func(c *config) { c.Manifest = "4.0" })
	checkVersion4(t, s, s.kickOff("/$export"), sample)
}

// Ensure a client gets it by the name of the operation, whatever the setting says.
func TestManifestFollowsTheNameOfTheOperation(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	s := startSidecar(t, upstream, nil)
	checkVersion4(t, s, s.post("/$export-v4", ""), sample)
}

func checkVersion4(t *testing.T, s *sidecar, status string, sample *fhirtest.Server) {
	t.Helper()
	got := s.finish(status)
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

// Ensure a folder for the files that cannot be one is found by its setting.
func TestFaultOfTheFolderNamesItsSetting(t *testing.T) {
	t.Parallel()
	c := defaultConfig()
	c.Bucket.Folder.Path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(c.Bucket.Folder.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openBucket(t.Context(), c); err == nil || !strings.Contains(err.Error(), "bucket.folder.path") {
		t.Errorf("got %v", err)
	}
}
