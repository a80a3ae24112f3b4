package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// patience bounds every wait of these tests.
const patience = time.Minute

// until polls a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// sidecar is a running sidecar, wired as `sidecar serve` wires it.
type sidecar struct {
	t      *testing.T
	config *config
	server *server
	base   string
	cancel context.CancelFunc
	ended  chan error
	log    *slog.Logger
}

// startSidecar runs a sidecar on free ports with a data folder of its own; edit may change its configuration. The address for clients
// is one that nobody takes while the sidecar is stopped.
func startSidecar(t *testing.T, upstream string, edit func(*config)) *sidecar {
	t.Helper()
	c := defaultConfig()
	c.Upstream, c.Data = upstream, filepath.Join(t.TempDir(), "data")
	c.Listen, c.AdminListen = freeAddress(t), "127.0.0.1:0"
	c.Settle, c.ShutdownGrace = 10*time.Millisecond, time.Second
	if edit != nil {
		edit(c)
	}
	s := &sidecar{t: t, config: c, log: slog.New(slog.DiscardHandler)}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *sidecar) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context())) // the cleanup stops it, after the test's context has ended
	server, err := newServer(ctx, s.config, s.log)
	if err != nil {
		cancel()
		s.t.Fatal(err)
	}
	s.config.Listen = server.front.Addr().String() // a restart keeps the address, as a Service does
	s.server, s.cancel, s.ended = server, cancel, make(chan error, 1)
	_, path, _ := strings.Cut(strings.TrimPrefix(s.config.Upstream, "http://"), "/")
	s.base = strings.TrimSuffix("http://"+s.config.Listen+"/"+path, "/")
	go func() { s.ended <- server.run(ctx) }()
}

// stop ends the sidecar as SIGTERM does. Once stopped it stays so. Connections to it are given up here too: a DELETE over one of them,
// after another start, would not be sent again.
func (s *sidecar) stop() {
	s.t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("sidecar ended: %v", err)
		}
	case <-time.After(patience):
		s.t.Error("sidecar does not end")
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// reply is a response that was read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends a request; header holds pairs of name and value. Redirects are not followed.
func ask(t *testing.T, method, address string, header ...string) reply {
	t.Helper()
	return send(t, method, address, "", header...)
}

func send(t *testing.T, method, address, content string, header ...string) reply {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(header, 2) {
		request.Header.Add(pair[0], pair[1])
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(body)}
}

// kickOff begins an export and returns its status address. The first test of the bucket is waited for.
func (s *sidecar) kickOff(path string) string {
	s.t.Helper()
	until(s.t, "bucket", func() bool { return s.server.exporter.Ready(s.t.Context()) == nil })
	got := ask(s.t, http.MethodGet, s.base+path, "Prefer", "respond-async")
	if got.status != http.StatusAccepted {
		s.t.Fatalf("kick-off: %d %s", got.status, got.body)
	}
	return got.header.Get("Content-Location")
}

// post begins an export by POST, with the JSON of a Parameters resource or nothing.
func (s *sidecar) post(path, parameters string) string {
	s.t.Helper()
	until(s.t, "bucket", func() bool { return s.server.exporter.Ready(s.t.Context()) == nil })
	got := send(s.t, http.MethodPost, s.base+path, parameters, "Prefer", "respond-async", "Content-Type", "application/fhir+json")
	if got.status != http.StatusAccepted {
		s.t.Fatalf("kick-off: %d %s", got.status, got.body)
	}
	return got.header.Get("Content-Location")
}

// finish polls until the export has ended and returns the last answer; header holds pairs of name and value.
func (s *sidecar) finish(status string, header ...string) (got reply) {
	s.t.Helper()
	until(s.t, "export", func() bool {
		got = ask(s.t, http.MethodGet, status, header...)
		return got.status != http.StatusAccepted
	})
	return got
}

// export does a whole export and returns its manifest.
func (s *sidecar) export(path string) (status string, manifest state.Manifest) {
	s.t.Helper()
	status = s.kickOff(path)
	return status, s.manifest(status)
}

func (s *sidecar) manifest(status string, header ...string) (manifest state.Manifest) {
	s.t.Helper()
	got := s.finish(status, header...)
	if got.status != http.StatusOK {
		s.t.Fatalf("export: %d %s", got.status, got.body)
	}
	if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
		s.t.Fatal(err)
	}
	return manifest
}

// checkFiles downloads the files of a manifest and compares all their lines with the wanted ones.
func checkFiles(t *testing.T, manifest state.Manifest, want []string) {
	t.Helper()
	var got []string
	for _, file := range manifest.Output {
		body := ask(t, http.MethodGet, file.URL).body
		lines := strings.SplitAfter(body, "\n")
		lines = lines[:len(lines)-1]
		if int64(len(lines)) != file.Count || !strings.HasSuffix(body, "\n") {
			t.Errorf("%s: %d lines, the manifest says %d", file.Type, len(lines), file.Count)
		}
		for _, line := range lines {
			if !strings.Contains(line, `"resourceType":"`+file.Type+`"`) {
				t.Errorf("%s: a line of another type", file.Type)
			}
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("export: got %d lines, want %d, or other ones", len(got), len(want))
	}
}

// expected picks, by the text of the references in them, the sample's resources that belong to the patients, and the
// Organizations and Practitioners that those refer to; nil means all resources. without names types that the level leaves out.
func expected(t *testing.T, sample *fhirtest.Server, patients []string, without ...string) []string {
	t.Helper()
	compartment, err := fhir.PatientCompartment("4.0.1")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, typ := range sample.Types() {
		for _, resource := range sample.Resources(typ) {
			line := string(resource)
			belongs := patients == nil || compartment.Contains(typ) && slices.ContainsFunc(patients, func(id string) bool {
				return strings.Contains(line, `"Patient/`+id+`"`) || typ == "Patient" && strings.Contains(line, `"id":"`+id+`"`)
			})
			if belongs && !slices.Contains(without, typ) {
				want = append(want, line)
			}
		}
	}
	if patients == nil {
		return want
	}
	text := strings.Join(want, "\n")
	for _, typ := range []string{"Organization", "Practitioner"} {
		for _, resource := range sample.Resources(typ) {
			if strings.Contains(text, `"`+keyOf(t, resource)+`"`) {
				want = append(want, string(resource))
			}
		}
	}
	return want
}

// keyOf is "Type/id" of a resource.
func keyOf(t *testing.T, resource []byte) string {
	t.Helper()
	var r struct{ ResourceType, ID string }
	if err := json.Unmarshal(resource, &r); err != nil {
		t.Fatal(err)
	}
	return r.ResourceType + "/" + r.ID
}

func patientIDs(first, last int) (ids []string) {
	for n := first; n <= last; n++ {
		ids = append(ids, fmt.Sprintf("pat-%05d", n))
	}
	return ids
}

// Ensure that whole exports work over HTTP: at each level, on each kind of server.
func TestServeExports(t *testing.T) {
	for _, personality := range []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI(), fhirtest.Blaze(), fhirtest.Microsoft()} {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			sample, upstream := newSample(t, personality, 20)
			s := startSidecar(t, upstream, func(c *config) { c.MaxRunning = 3 })
			system, patient, group := s.kickOff("/$export"), s.kickOff("/Patient/$export"), s.kickOff("/Group/demo-group/$export")
			checkFiles(t, s.manifest(system), expected(t, sample, nil))
			checkFiles(t, s.manifest(patient), expected(t, sample, patientIDs(1, 20)))
			checkFiles(t, s.manifest(group), expected(t, sample, patientIDs(1, 9), "Group"))
		})
	}
}

func TestServeExportsBelowAnyBase(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/a/b"} {
		sample, upstream := newSampleAt(t, fhirtest.Plain(), path, 2)
		s := startSidecar(t, upstream, nil)
		status, manifest := s.export("/Patient/$export")
		if !strings.HasPrefix(status, s.base+"/$export-status/") || !strings.HasPrefix(manifest.Output[0].URL, s.base+"/$export-file/") {
			t.Errorf("base %q: got %s and %s", path, status, manifest.Output[0].URL)
		}
		checkFiles(t, manifest, expected(t, sample, patientIDs(1, 2)))
	}
}

func TestServeNarrowsByTypeAndTime(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 3)
	if err := sample.PutAt([]byte(`{"resourceType":"Patient","id":"old"}`), time.Now().AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, nil)
	since := time.Now().AddDate(0, 0, -1).UTC().Format(time.RFC3339)
	_, manifest := s.export("/$export?_type=Patient&_since=" + since)
	var want []string
	for _, resource := range sample.Resources("Patient") {
		if !strings.Contains(string(resource), `"id":"old"`) {
			want = append(want, string(resource))
		}
	}
	checkFiles(t, manifest, want)
	if manifest.Request != s.base+"/$export?_type=Patient&_since="+since {
		t.Errorf("request: got %q", manifest.Request)
	}
}

func TestServeGivesFilesAndTakesThemBack(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 3)
	s := startSidecar(t, upstream, nil)
	status, manifest := s.export("/Patient/$export")
	link := manifest.Output[0].URL
	whole := ask(t, http.MethodGet, link)
	head := ask(t, http.MethodHead, link)
	if head.status != http.StatusOK || head.body != "" || head.header.Get("Content-Length") != fmt.Sprint(len(whole.body)) {
		t.Errorf("HEAD: got %d %q", head.status, head.header)
	}
	if part := ask(t, http.MethodGet, link, "Range", "bytes=5-9"); part.status != http.StatusPartialContent || part.body != whole.body[5:10] {
		t.Errorf("Range: got %d %q", part.status, part.body)
	}
	if same := ask(t, http.MethodGet, link, "If-None-Match", whole.header.Get("ETag")); same.status != http.StatusNotModified {
		t.Errorf("If-None-Match: got %d", same.status)
	}
	if got := ask(t, http.MethodDelete, status); got.status != http.StatusAccepted {
		t.Errorf("DELETE: got %d", got.status)
	}
	for _, address := range []string{status, link} {
		checkOutcome(t, ask(t, http.MethodGet, address), http.StatusNotFound, "not-found")
	}
	until(t, "files removed", func() bool { return len(filesBelow(t, s.config.filesFolder())) == 0 })
}

func TestServeFreesTheSlotWithDelete(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Settle = time.Hour })
	status := s.kickOff("/$export")
	running := ask(t, http.MethodGet, s.base+"/$export")
	checkOutcome(t, running, http.StatusTooManyRequests, "throttled")
	if running.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if got := ask(t, http.MethodDelete, status); got.status != http.StatusAccepted {
		t.Errorf("DELETE: got %d", got.status)
	}
	checkOutcome(t, ask(t, http.MethodGet, status), http.StatusNotFound, "not-found")
	if got := ask(t, http.MethodGet, s.base+"/$export"); got.status != http.StatusAccepted {
		t.Errorf("kick-off right after DELETE: got %d %s", got.status, got.body)
	}
}

func TestServeForwardsOnlyWithoutIntercept(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Intercept = false })
	for _, path := range []string{"/$export", "/Patient/$export", "/$export-status/x", "/metadata"} {
		direct, got := ask(t, http.MethodGet, upstream+path), ask(t, http.MethodGet, s.base+path)
		if got.status != direct.status || strings.ReplaceAll(got.body, s.base, upstream) != direct.body {
			t.Errorf("%s: got %d %s, want %d %s", path, got.status, got.body, direct.status, direct.body)
		}
	}
	if n := len(sample.Requests()); n != 8 {
		t.Errorf("the upstream saw %d requests, want 8", n)
	}
}

// log is a place for the log of a running command.
type log struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.String()
}

// Ensure that the command itself serves, from a file and flags, and ends with its context.
func TestServeCommandRunsUntilItIsStopped(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "upstream: http://127.0.0.1:1/wrong\nlisten: 127.0.0.1:1\nadmin_listen: 127.0.0.1:0\nlog_format: json\nshutdown_grace: 1s\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var out log
	ended, args := make(chan error, 1), []string{"serve", "-config", file, "-upstream", upstream, "-listen", freeAddress(t), "-data", filepath.Join(t.TempDir(), "d")}
	go func() { ended <- run(ctx, args, io.Discard, &out) }()
	var line struct {
		Listen string `json:"listen"`
		Admin  string `json:"admin_listen"`
	}
	until(t, "log line with the addresses", func() bool {
		first, _, whole := strings.Cut(out.String(), "\n")
		return whole && json.Unmarshal([]byte(first), &line) == nil && line.Listen != ""
	})
	for _, address := range []string{"http://" + line.Listen + "/fhir/metadata", "http://" + line.Admin + "/livez", "http://" + line.Admin + "/readyz", "http://" + line.Admin + "/metrics"} {
		until(t, address, func() bool { return ask(t, http.MethodGet, address).status == http.StatusOK })
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(patience):
		t.Error("serve does not end")
	}
	if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", line.Listen); err == nil {
		t.Error("the port is still open")
	}
	for _, private := range []string{"pat-0", "_lastUpdated"} {
		if strings.Contains(out.String(), private) {
			t.Errorf("the log holds %q", private)
		}
	}
}
