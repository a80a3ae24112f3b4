package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// trail reads the lines of an audit trail.
func trail(t *testing.T, path string) (events []state.Audit, text string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var event state.Audit
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatal(err)
		}
		if event.Time.IsZero() {
			t.Error("a line has no time")
		}
		events = append(events, event)
	}
	return events, string(raw)
}

// Ensure the audit trail has a line for each kick-off, download, deletion and end of an export, that its numbers are those of the
// manifest, and that no id of a resource nor a value of a search is in it.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	_, upstream := newSample(t, fhirtest.Plain(), 3)
	s := startSidecar(t, upstream, func(c *config) { c.Audit = auditConfig{To: "file", Path: path} })
	status, manifest := s.export("/Patient/$export?_type=Patient")
	id := status[strings.LastIndex(status, "/")+1:]
	until(t, "line of the completion", func() bool { // it comes behind the manifest
		_, text := trail(t, path)
		return strings.Contains(text, `"completed"`)
	})
	file := manifest.Output[0]
	whole := ask(t, http.MethodGet, file.URL)
	part := ask(t, http.MethodGet, file.URL, "Range", "bytes=0-9")
	if whole.status != http.StatusOK || part.status != http.StatusPartialContent {
		t.Fatalf("downloads: %d, %d", whole.status, part.status)
	}
	ask(t, http.MethodGet, s.base+"/Patient/$export?_type=Patient&_typeFilter=Patient%3Fname%3DCANARY&_nonsense=CANARY", "Prefer", "respond-async, handling=strict")
	ask(t, http.MethodGet, s.base+"/$export-file/CANARY/CANARY")
	if got := ask(t, http.MethodDelete, status); got.status != http.StatusAccepted {
		t.Fatalf("DELETE: %d", got.status)
	}
	s.stop()
	if info, err := os.Stat(path); err != nil || info.Mode()&othersMay != 0 {
		t.Errorf("the trail can be read by others: %v, %v", info, err)
	}
	events, text := trail(t, path)
	for _, event := range events {
		if asked := event.What != "completed"; asked != (event.Request != "") {
			t.Errorf("%s: the id of its request is %q", event.What, event.Request)
		}
	}
	for _, word := range []string{"CANARY", "pat-0", "http"} {
		if strings.Contains(text, word) {
			t.Errorf("the trail has %q:\n%s", word, text)
		}
	}
	sum := sha256.Sum256([]byte(whole.body))
	hash := hex.EncodeToString(sum[:])
	want := []state.Audit{
		{What: "kick-off", Status: http.StatusAccepted, Job: id, Level: state.Patient, Types: []string{"Patient"}},
		{What: "completed", Job: id, Level: state.Patient, Types: []string{"Patient"}, Files: 1, Resources: file.Count, Bytes: int64(len(whole.body)), Hashes: map[string]string{"Patient.1.ndjson": hash}},
		{What: "download", Status: http.StatusOK, Job: id, Level: state.Patient, File: "Patient.1.ndjson", SHA256: hash, Bytes: int64(len(whole.body))},
		{What: "download", Status: http.StatusPartialContent, Job: id, Level: state.Patient, File: "Patient.1.ndjson", SHA256: hash, Range: true, Bytes: 10},
		{What: "kick-off", Status: http.StatusBadRequest, Level: state.Patient},
		{What: "download", Status: http.StatusNotFound},
		{What: "cancel", Status: http.StatusAccepted, Job: id, Level: state.Patient},
	}
	if got, want := sortedLines(t, events), sortedLines(t, want); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// sortedLines writes events without their times and ids of requests, in an order of their own: two of them may end at the same moment.
func sortedLines(t *testing.T, events []state.Audit) (lines []string) {
	t.Helper()
	for _, event := range events {
		event.Time, event.Request = time.Time{}, ""
		line, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	slices.Sort(lines)
	return lines
}

// halfWriter takes the first bytes of a line and fails, once.
type halfWriter struct {
	strings.Builder
	failed bool
}

func (h *halfWriter) Write(b []byte) (int, error) {
	if !h.failed {
		h.failed = true
		n, _ := h.Builder.Write(b[:5]) // a Builder does not fail
		return n, errors.New("no room")
	}
	return h.Builder.Write(b)
}

// Ensure an audit line that cannot be written is counted, and does not spoil the next one.
func TestAuditFailureIsCounted(t *testing.T) {
	t.Parallel()
	out := &halfWriter{}
	a := &auditTrail{out: out, log: slog.New(slog.DiscardHandler), failures: newAuditFailures()}
	a.Note(t.Context(), &state.Audit{What: "cancel"})
	a.Note(t.Context(), &state.Audit{What: "expired"})
	if got := counted(t, a.failures); got != 1 {
		t.Errorf("%v failures counted, want 1", got)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], `"expired"`) || !json.Valid([]byte(lines[1])) {
		t.Errorf("got %q", lines)
	}
}

// counted is the value of a counter.
func counted(t *testing.T, counter prometheus.Counter) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(counter)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}
