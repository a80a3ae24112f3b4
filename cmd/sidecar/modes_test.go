package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// checkModes fails the test where something in the data folder is for others than its owner, and tells what is there.
func checkModes(t *testing.T, data string) (kinds map[string]int) {
	t.Helper()
	kinds = map[string]int{}
	err := filepath.WalkDir(data, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // what is in the making is renamed
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = fs.ModeDir | 0o700
		}
		if info.Mode() != want {
			t.Errorf("%s: got %s, want %s", strings.TrimPrefix(path, data), info.Mode(), want)
		}
		below, err := filepath.Rel(data, path)
		if !entry.IsDir() {
			kind, _, _ := strings.Cut(below, string(filepath.Separator))
			kinds[kind]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

// Ensure state, spool, files and ledger can be read by nobody but the owner of the process, in the middle of an export and behind
// it: all of them hold health data, or ids.
func TestDataFolderIsForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	personality := fhirtest.Plain()
	personality.NoHistory = true // so that there is a ledger
	sample, upstream := newSample(t, personality, 30)
	data := filepath.Join(t.TempDir(), "data") // made by the sidecar
	s := startSidecar(t, upstream, func(c *config) { c.Data, c.Ledger, c.Gzip, c.Workers, c.PageSize = data, true, true, 1, 10 })
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	hanging := make(chan struct{}, 100)
	sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/Patient") && r.URL.Query().Has("_sort")
		},
		Hang: true, Times: -1, Do: func(*http.Request) { hanging <- struct{}{} },
	})
	status := s.kickOff("/$export")
	select {
	case <-hanging:
	case <-time.After(patience):
		t.Fatal("no search of Patients")
	}
	if kinds := checkModes(t, data); kinds["spool"] == 0 || kinds["state.db"] == 0 {
		t.Errorf("in the middle of the export there are %v", kinds)
	}
	s.stop()
	sample.ClearFaults()
	s.start()
	s.manifest(status)
	if kinds := checkModes(t, data); kinds["files"] == 0 || kinds["ledger"] == 0 || kinds["state.db"] == 0 {
		t.Errorf("behind the export there are %v", kinds)
	}
}

// Ensure files that were made too open, as by a copy that was brought back, are for their owner alone from the start on, and that
// an audit file that others can read, as whoever collects it may, is left so and said.
func TestWhatWasTooOpenIsTightened(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 0)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s := startSidecar(t, upstream, func(c *config) { c.Audit = auditConfig{To: "file", Path: path} })
	s.stop()
	data := s.config.Data
	for name, mode := range map[string]fs.FileMode{filepath.Join(data, "state.db"): 0o644, filepath.Join(data, "spool"): 0o755, path: 0o640} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	seen := &collected{}
	s.log = slog.New(slog.NewTextHandler(seen, nil))
	s.start()
	checkModes(t, data)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("the audit file: %v, %v", info.Mode(), err)
	}
	if text := strings.Join(seen.lines(), "\n"); !strings.Contains(text, "can be read or written by others") || !strings.Contains(text, "-rw-r-----") {
		t.Errorf("the log has %s", text)
	}
}
