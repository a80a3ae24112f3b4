package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// canary is in everything that must not be seen outside of files: ids, contents, search values, tokens.
const canary = "k4n4ri"

// collected is what somebody may see who is not to see health data.
type collected struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to it.
func (c *collected) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *collected) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Split(c.text.String(), "\n")
}

// marked serves two patients of whom everything is marked, with what belongs to them.
func marked(t *testing.T) (*fhirtest.Server, string) {
	t.Helper()
	sample, upstream := newSample(t, fhirtest.Plain(), 0)
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		if token := r.Header.Get("Authorization"); token == "Bearer k4n4ri-token" || token == "Basic azRuNHJpOms0bjRyaQ==" {
			return &fhirtest.Access{}
		}
		return nil
	}
	for _, resource := range []string{
		`{"resourceType":"Patient","id":"k4n4ri-1","name":[{"family":"k4n4ri"}],"gender":"female","managingOrganization":{"reference":"Organization/k4n4ri-o"}}`,
		`{"resourceType":"Patient","id":"k4n4ri-2","identifier":[{"value":"k4n4ri"}]}`,
		`{"resourceType":"Organization","id":"k4n4ri-o","name":"k4n4ri"}`,
		`{"resourceType":"Observation","id":"k4n4ri-3","status":"final","code":{"text":"k4n4ri"},"subject":{"reference":"Patient/k4n4ri-1"},"valueString":"k4n4ri"}`,
		`{"resourceType":"DocumentReference","id":"k4n4ri-4","status":"current","subject":{"reference":"Patient/k4n4ri-1"},"content":[{"attachment":{"url":"Binary/k4n4ri-5"}}]}`,
		`{"resourceType":"Binary","id":"k4n4ri-5","contentType":"text/plain","data":"k4n4ri+/"}`,
		`{"resourceType":"Provenance","id":"k4n4ri-6","target":[{"reference":"Observation/k4n4ri-3"}],"agent":[{"who":{"reference":"Practitioner/k4n4ri-7"}}]}`,
		`{"resourceType":"Group","id":"k4n4ri-g","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/k4n4ri-1"}}]}`,
	} {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Fatal(err)
		}
	}
	return sample, upstream
}

// Ensure that nothing of what is marked is in a log line of any level and form, the access log among them, a metric, a page for
// operators, an audit line, an error file, a refusal or a progress text, whatever was asked for and whatever went wrong: only the
// files have it. (TestExportIsTraced looks at spans.)
func TestCanary(t *testing.T) {
	t.Parallel()
	forms := map[string]func(*collected) slog.Handler{
		"text": func(c *collected) slog.Handler {
			return slog.NewTextHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
		"json": func(c *collected) slog.Handler {
			return slog.NewJSONHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
	}
	for form, handler := range forms {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			seen, audit := &collected{}, filepath.Join(t.TempDir(), "audit.jsonl")
			sample, upstream := marked(t)
			s := startSidecar(t, upstream, func(c *config) {
				c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password = "k4n4ri", "k4n4ri"
				c.Auth.Mode, c.MaxRunning, c.AllowPartial, c.Audit = auth.Upstream, 20, true, auditConfig{To: "file", Path: audit}
				c.AccessLog, c.RequestIDHeader = true, "X-Request-Id"
			})
			s.stop()
			s.log = slog.New(handler(seen))
			s.start()
			until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
			walk := &canaryWalk{sidecar: s, sample: sample, seen: seen}
			walk.exports()
			walk.refusals()
			walk.failures()
			walk.operators()
			s.stop()
			raw, err := os.ReadFile(audit)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(seen, "audit %s\n", raw)
			events, _ := trail(t, audit)
			for _, event := range events {
				sent, err := newAuditEvent("4.0.1", &event)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(seen, "AuditEvent %s\n", sent)
			}
			walk.check(raw)
		})
	}
}

// canaryWalk asks for everything and collects what is seen.
type canaryWalk struct {
	*sidecar
	sample *fhirtest.Server
	seen   *collected
	status string
}

// as asks with the token that holds.
func (w *canaryWalk) as(method, address string) reply {
	w.t.Helper()
	return ask(w.t, method, address, "Authorization", "Bearer k4n4ri-token", "X-Request-Id", "k4n4ri")
}

// note collects what a client is told beside the data.
func (w *canaryWalk) note(got reply) reply {
	fmt.Fprintf(w.seen, "answer %d %s %s\n", got.status, got.header.Get("X-Progress"), got.header.Get("WWW-Authenticate"))
	if strings.Contains(got.body, "OperationOutcome") {
		fmt.Fprintf(w.seen, "outcome %s\n", got.body)
	}
	return got
}

// follow polls an export to its end and reads all its files.
func (w *canaryWalk) follow(kicked reply) {
	w.t.Helper()
	if kicked.status != http.StatusAccepted {
		w.t.Fatalf("kick-off: %d %s", kicked.status, kicked.body)
	}
	w.status = kicked.header.Get("Content-Location")
	var got reply
	until(w.t, "export", func() bool {
		got = w.note(w.as(http.MethodGet, w.status))
		return got.status != http.StatusAccepted
	})
	if got.status != http.StatusOK {
		return
	}
	var manifest state.Manifest
	if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
		w.t.Fatal(err)
	}
	fmt.Fprintf(w.seen, "manifest %s\n", strings.ReplaceAll(got.body, manifest.Request, "")) // what the client itself has asked for
	for _, file := range manifest.Output {
		if got := w.as(http.MethodGet, file.URL); file.Type != "Practitioner" && !strings.Contains(got.body, canary) {
			w.t.Errorf("a file of %s has nothing of what is marked: %d", file.Type, got.status)
		}
	}
	for _, file := range manifest.Error {
		fmt.Fprintf(w.seen, "error file %s\n", w.as(http.MethodGet, file.URL).body)
	}
}

// parameters is the body of a kick-off by POST.
func parameters(parameter string) string {
	return `{"resourceType":"Parameters","parameter":[` + parameter + `]}`
}

// exports asks for exports of every level, with and without filters, over a restart.
func (w *canaryWalk) exports() {
	for _, path := range []string{
		"/$export", "/Patient/$export", "/Group/k4n4ri-g/$export", "/Group/k4n4ri-g/$export?_type=Patient,Observation&includeAssociatedData=RelevantProvenanceResources",
		"/Patient/$export?_type=Observation&_typeFilter=Observation%3Fcode%3Acontains%3Dk4n4ri", "/$export?_elements=id,name&organizeOutputBy=Patient",
		"/$export?_since=2020-01-01T00:00:00Z&_type=Patient&_typeFilter=Patient%3Fgender%3Dfemale",
	} {
		kicked := w.note(w.as(http.MethodGet, w.base+path))
		if kicked.status == http.StatusBadRequest { // a filter that this server does not have
			continue
		}
		w.follow(kicked)
	}
	body := parameters(`{"name":"patient","valueReference":{"reference":"Patient/k4n4ri-1"}}`)
	kicked := send(w.t, http.MethodPost, w.base+"/Patient/$export", body, "Content-Type", "application/fhir+json", "Authorization", "Bearer k4n4ri-token")
	w.stop()
	w.start()
	until(w.t, "bucket", func() bool { return w.server.exporter.Ready(w.t.Context()) == nil })
	w.follow(kicked)
	if got := w.as(http.MethodGet, w.base+"/Patient/k4n4ri-1"); got.status != http.StatusOK {
		w.t.Errorf("a forwarded read: %d", got.status)
	}
	for _, path := range []string{"/Patient?name=k4n4ri", "/Patient/k4n4ri-1/_history", "/k4n4ri", "/Patient/k4n4ri-1/$k4n4ri"} {
		w.as(http.MethodGet, w.base+path)
	}
	w.as("K4N4RI", w.base+"/Patient/k4n4ri-1")
}

// refusals asks for what is refused. Names of parameters and types, and codes, are repeated to the client that wrote them, so they
// are not marked.
func (w *canaryWalk) refusals() {
	for _, path := range []string{
		"/Group/k4n4ri-nobody/$export", "/$export?_since=k4n4ri", "/$export?_typeFilter=k4n4ri", "/$export?_typeFilter=Patient%3F_count%3Dk4n4ri",
		"/$export?_outputFormat=k4n4ri", "/$export?x=k4n4ri", "/Patient/$export?patient=Patient/k4n4ri-1", "/$export?_minimumFileSize=k4n4ri", "/$export?_until=k4n4ri",
		"/$export?allowPartialManifests=k4n4ri", "/$export-status/k4n4ri", "/$export-file/k4n4ri/k4n4ri",
		"/$export-attachment/k4n4ri/k4n4ri/Binary/k4n4ri", "/Group/k4n4ri%2F/$export",
	} {
		if got := w.note(w.as(http.MethodGet, w.base+path)); got.status < 400 {
			w.t.Errorf("%s: %d", path, got.status)
		}
	}
	for _, parameter := range []string{
		`{"name":"patient","valueReference":{"reference":"Patient/k4n4ri-nobody"}}`, `{"name":"patient","valueReference":{"reference":"k4n4ri"}}`,
		`{"name":"_since","valueInstant":"k4n4ri"}`, `{"name":"_typeFilter","valueString":"k4n4ri"}`,
	} {
		w.note(send(w.t, http.MethodPost, w.base+"/Patient/$export", parameters(parameter), "Content-Type", "application/fhir+json", "Authorization", "Bearer k4n4ri-token"))
	}
	for _, token := range []string{"Bearer k4n4ri-wrong", "Basic k4n4ri", "k4n4ri"} {
		w.note(ask(w.t, http.MethodGet, w.base+"/$export", "Authorization", token))
		w.note(ask(w.t, http.MethodGet, w.status, "Authorization", token))
	}
}

// failures makes the server fail in words that are marked.
func (w *canaryWalk) failures() {
	body := []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception","diagnostics":"Patient/k4n4ri-1: k4n4ri"}]}`)
	onHistory := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/_history") }
	onRows := func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/Observation") && r.URL.Query().Has("_sort")
	}
	for _, fault := range []fhirtest.Fault{
		{Match: onRows, Status: http.StatusForbidden, Body: body, Times: -1},
		{Match: onRows, Status: http.StatusBadRequest, Body: body, Times: -1},
		{Match: onHistory, Status: http.StatusForbidden, Body: body, Times: -1},
		{Match: onRows, Status: http.StatusOK, Body: []byte(`{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"k4n4ri`), Times: -1},
	} {
		w.sample.Fail(fault)
		kicked := w.note(w.as(http.MethodGet, w.base+"/$export"))
		if fault.Status == http.StatusOK { // it is waited for; nobody has that much time
			until(w.t, "waiting", func() bool {
				return strings.Contains(w.note(w.as(http.MethodGet, kicked.header.Get("Content-Location"))).header.Get("X-Progress"), "waiting for the FHIR server")
			})
			w.note(w.as(http.MethodDelete, kicked.header.Get("Content-Location")))
		} else {
			w.follow(kicked)
		}
		w.sample.ClearFaults()
	}
}

// operators reads what the port for operators shows, and what the commands print.
func (w *canaryWalk) operators() {
	admin := "http://" + w.server.back.Addr().String()
	id := w.status[strings.LastIndex(w.status, "/")+1:]
	for _, path := range []string{"/metrics", "/profile", "/jobs", "/jobs/" + id, "/livez", "/readyz"} {
		got := ask(w.t, http.MethodGet, admin+path)
		if got.status != http.StatusOK {
			w.t.Errorf("%s: %d", path, got.status)
		}
		fmt.Fprintf(w.seen, "page %s %s\n", path, got.body)
	}
	file := filepath.Join(w.t.TempDir(), "config.yaml")
	text := "upstream: " + w.config.Upstream + "\nupstream_auth: {basic: {username: k4n4ri, password: k4n4ri}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for _, command := range []string{"check", "plan"} {
		if err := run(context.WithoutCancel(w.t.Context()), []string{command, "-config", file, "-data", w.t.TempDir()}, w.seen, w.seen); err != nil {
			w.t.Errorf("%s: %v", command, err)
		}
	}
}

// check looks for what is marked, and that there was enough to look at.
func (w *canaryWalk) check(audit []byte) {
	lines := w.seen.lines()
	for _, line := range lines {
		if strings.Contains(strings.ToLower(line), canary) || strings.Contains(line, "azRuNHJp") {
			w.t.Errorf("it is seen: %.300s", line)
		}
	}
	if text := strings.Join(lines, "\n"); len(lines) < 300 || !strings.Contains(text, "sidecar_") || !strings.Contains(text, "export planned") || !strings.Contains(text, "error file {") {
		w.t.Errorf("only %d lines were collected, or not of all kinds", len(lines))
	}
	for _, want := range []string{`request served`, `sidecar_proxy_request_seconds_count{route="kick-off"`} {
		if !strings.Contains(strings.Join(lines, "\n"), want) {
			w.t.Errorf("nothing was collected with %q", want)
		}
	}
	for _, kind := range []string{`"kick-off"`, `"completed"`, `"failed"`, `"cancel"`, `"download"`, `"attachment"`, `"hashes"`, `"sha256"`, `"group"`} {
		if !bytes.Contains(audit, []byte(kind)) {
			w.t.Errorf("the audit trail has no %s", kind)
		}
	}
}
