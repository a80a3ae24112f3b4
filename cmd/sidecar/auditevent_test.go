package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// Ensure an event is written in the form of the server's release, and not for a release whose form is not known.
func TestAuditEventHasTheFormOfItsRelease(t *testing.T) {
	event := &state.Audit{
		What: "download", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Status: 200, Aborted: true, Job: "job", Client: "warehouse",
		Level: state.Patient, File: "Patient.1.ndjson", SHA256: "ab", Bytes: 7,
	}
	const common = `"action":"R","recorded":"2026-01-02T03:04:05.000Z","outcome":%s,"agent":[{"who":{"identifier":{"value":"warehouse"}},"requestor":true}],` +
		`"source":{"observer":{"display":"bulk export sidecar"}},"entity":[{"what":{"identifier":{"value":"5e8c9902207afaeb7120430c585a445f21e92932081d64bc99f80e4925bcb002"},` +
		`"display":"SHA-256 of the export's id"},"detail":[`
	export := `{"system":"http://dicom.nema.org/resources/ontology/DCM","code":"110106","display":"Export"}`
	for release, form := range map[string][3]string{
		"4.0.1": {`"type":` + export + `,"subtype":[{"display":"download"}],`, `"4"`, `"%s"`},
		"5.0.0": {
			`"code":{"coding":[` + export + `],"text":"download"},`,
			`{"code":{"system":"http://terminology.hl7.org/CodeSystem/audit-event-outcome","code":"4"}}`, `{"text":"%s"}`,
		},
	} {
		var details []string
		for _, detail := range [][2]string{
			{"what", "download"}, {"status", "200"}, {"aborted", "true"}, {"level", "patient"}, {"file", "Patient.1.ndjson"}, {"sha256", "ab"}, {"bytes", "7"},
		} {
			details = append(details, fmt.Sprintf(`{"type":`+form[2]+`,"valueString":%q}`, detail[0], detail[1]))
		}
		want := `{"resourceType":"AuditEvent",` + form[0] + fmt.Sprintf(common, form[1]) + strings.Join(details, ",") + `]}]}`
		got, err := newAuditEvent(release, event)
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", release, err, got, want)
		}
	}
	if _, err := newAuditEvent("3.0.2", event); err == nil {
		t.Error("the form of STU3 is known")
	}
}

// Ensure the server gets an AuditEvent for each line, with the sidecar's credentials and nothing of an export's id; that a busy server
// is asked again, and one that refuses is counted and fails nothing.
func TestAuditEventsReachTheServer(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 3)
	toServer := func(r *http.Request) bool {
		return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/AuditEvent")
	}
	sample.Fail(fhirtest.Fault{Match: toServer, Status: http.StatusServiceUnavailable, Times: 1})
	sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
		return toServer(r) && r.Header.Get("Authorization") != "Basic c2lkZWNhcjpzZWNyZXQ="
	}, Status: http.StatusForbidden, Times: -1})
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s := startSidecar(t, upstream, func(c *config) {
		c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password, c.Auth.Mode = "sidecar", "secret", auth.None
		c.WritesPassHere, c.Audit = true, auditConfig{To: "file", Path: path, FHIR: true}
	})
	status, manifest := s.export("/Patient/$export?_type=Patient")
	ask(t, http.MethodGet, manifest.Output[0].URL)
	ask(t, http.MethodGet, s.base+"/$export?_since=x")
	s.stop()
	lines, _ := trail(t, path)
	events := sample.Resources("AuditEvent")
	if len(lines) < 4 || len(events) != len(lines) {
		t.Errorf("%d AuditEvents of %d lines", len(events), len(lines))
	}
	id := status[strings.LastIndex(status, "/")+1:]
	found := map[string]int{}
	for _, raw := range events {
		var event struct{ Subtype []struct{ Display string } }
		if err := json.Unmarshal(raw, &event); err != nil {
			t.Fatal(err)
		}
		found[event.Subtype[0].Display]++
		if strings.Contains(string(raw), id) || strings.Contains(string(raw), "pat-0") || strings.Contains(string(raw), "http://127") {
			t.Errorf("it says too much: %s", raw)
		}
	}
	if found["kick-off"] != 2 || found["completed"] != 1 || found["download"] != 1 {
		t.Errorf("the server has %v", found)
	}

	seen := &collected{}
	s.log = slog.New(slog.NewTextHandler(seen, nil))
	s.start()
	sample.Fail(fhirtest.Fault{Match: toServer, Status: http.StatusForbidden, Times: -1})
	if got := ask(t, http.MethodDelete, status); got.status != http.StatusAccepted {
		t.Errorf("DELETE: %d", got.status)
	}
	until(t, "failure in the metric", func() bool {
		return strings.Contains(ask(t, http.MethodGet, "http://"+s.server.back.Addr().String()+"/metrics").body, "sidecar_audit_event_failures_total 1")
	})
	until(t, "failure in the log", func() bool { return strings.Contains(strings.Join(seen.lines(), "\n"), "AuditEvent not stored") })
}

// Ensure events for which there is no room are counted, and nobody waits.
func TestAuditEventsWithoutRoomAreCounted(t *testing.T) {
	sender := newAuditSender(nil, nil, newAuditEventFailures(), slog.New(slog.DiscardHandler))
	for range auditQueue + 2 {
		sender.add(&state.Audit{What: "download"})
	}
	if got := counted(t, sender.failures); got != 2 {
		t.Errorf("%v are counted, want 2", got)
	}
}
