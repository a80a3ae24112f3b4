package proxy_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/state"
)

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// nobody is where no server listens; a port that was just given back might have a new owner.
const nobody = "http://127.0.0.1:1"

// exports is the engine that these tests put behind the proxy: it only keeps the books, in the real store.
type exports struct {
	store     *state.Store
	retention time.Duration
	ready     error
	// kickOff replaces the usual one where it is set.
	kickOff func(state.Kickoff) (*state.Job, error)
	asked   []state.Kickoff
}

func (e *exports) KickOff(ctx context.Context, kickoff state.Kickoff) (*state.Job, error) {
	e.asked = append(e.asked, kickoff)
	if e.kickOff != nil {
		return e.kickOff(kickoff)
	}
	job := &state.Job{ID: "job-1", Folder: "folder-1", Status: state.Accepted, Kickoff: kickoff, Accepted: time.Now()}
	return job, e.store.Create(ctx, job, 1)
}

func (e *exports) Cancel(ctx context.Context, id string) error {
	return e.store.Update(ctx, id, func(job *state.Job) error {
		job.Status = state.Cancelled
		return nil
	})
}

func (e *exports) Ready(context.Context) error { return e.ready }

func (e *exports) ExpiresAt(job *state.Job) time.Time {
	if job.Finished.IsZero() {
		return time.Time{}
	}
	return job.Finished.Add(e.retention)
}

// house is a proxy before an upstream, with a real store and a folder as bucket.
type house struct {
	t       *testing.T
	url     string // of the proxy's root
	base    string // of FHIR at the proxy
	handler http.Handler
	store   *state.Store
	bucket  *blob.Dir
	exports *exports
}

// newHouse serves a proxy for the FHIR base at upstream; edit may change its configuration.
func newHouse(t *testing.T, upstream string, edit func(*proxy.Config)) *house {
	t.Helper()
	base, err := fhir.ParseBase(upstream)
	if err != nil {
		t.Fatal(err)
	}
	client, err := fhir.NewClient(fhir.Config{BaseURL: upstream})
	if err != nil {
		t.Fatal(err)
	}
	store, err := state.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := blob.NewDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, store: store, bucket: bucket, exports: &exports{store: store, retention: time.Hour}}
	cfg := proxy.Config{
		Upstream: base, Intercept: true, Client: client, Exports: h.exports, Jobs: store, Bucket: bucket,
		TypesOf: func(level state.Level, statement *fhir.CapabilityStatement) ([]string, []string, error) {
			if level == state.System {
				return statement.Types, nil, nil
			}
			return []string{"Patient", "Observation", "Condition", "Group"}, []string{"Practitioner"}, nil
		},
		LinkKey: linkKey, Log: slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	if h.handler, err = proxy.New(cfg); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h.handler)
	h.url, h.base = server.URL, server.URL+base.Path
	t.Cleanup(func() {
		server.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// newFHIRHouse is newHouse before a plain FHIR server with a few patients and Groups.
func newFHIRHouse(t *testing.T, edit func(*proxy.Config)) (*house, *fhirtest.Server) {
	t.Helper()
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	for _, resource := range fhirtest.Generate(1, 3) {
		if err := sample.PutAt(resource, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	upstream := httptest.NewServer(sample)
	t.Cleanup(upstream.Close)
	return newHouse(t, upstream.URL+"/fhir", edit), sample
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

// unnamed is the body of an outcome as each request gets it: without the id of its own.
func (a answer) unnamed() string {
	id := a.header.Get(proxy.DefaultRequestIDHeader)
	if len(id) < 20 { // an empty one would be found everywhere
		return a.body
	}
	return strings.Replace(a.body, `"id":"`+id+`"`, `"id":"request"`, 1)
}

// linkKey signs the links of these tests.
var linkKey = []byte("a key of 32 bytes for these tests")

// file is the address of a job's file, with a signature for the next minute.
func (h *house) file(job, name string) string {
	return h.base + "/$export-file/" + job + "/" + name + "?" + proxy.SignLink(linkKey, job, name, time.Now().Add(time.Minute))
}

// ask sends a request; header holds pairs of name and value.
func (h *house) ask(method, address string, header ...string) answer {
	h.t.Helper()
	return h.send(method, address, "", header...)
}

// send is ask with a body.
func (h *house) send(method, address, body string, header ...string) answer {
	h.t.Helper()
	response, err := http.DefaultTransport.RoundTrip(h.request(method, address, body, header...))
	if err != nil {
		h.t.Fatal(err)
	}
	defer response.Body.Close()
	received, err := io.ReadAll(response.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(received)}
}

// request makes a request; header holds pairs of name and value.
func (h *house) request(method, address, body string, header ...string) *http.Request {
	h.t.Helper()
	request, err := http.NewRequestWithContext(h.t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for pair := range slices.Chunk(header, 2) {
		request.Header.Add(pair[0], pair[1])
	}
	return request
}

// addJob stores a job that has ended as status says, with the given files, contents by name.
func (h *house) addJob(job state.Job, files map[string]string) {
	h.t.Helper()
	ctx, end := h.t.Context(), job.Status
	job.Status = state.InProgress
	if err := h.store.Create(ctx, &job, 100); err != nil {
		h.t.Fatal(err)
	}
	for _, typ := range slices.Sorted(func(yield func(string) bool) {
		for typ := range files {
			if !yield(typ) {
				return
			}
		}
	}) {
		content := files[typ]
		file := state.File{Kind: state.Output, Type: typ, Count: int64(strings.Count(content, "\n")), Bytes: int64(len(content))}
		if typ == "OperationOutcome" {
			file.Kind = state.Error
		}
		file, err := h.store.Allot(ctx, job.ID, file)
		if err == nil {
			err = h.bucket.Put(ctx, job.Folder+"/"+file.Name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader(content))
		}
		if err == nil {
			err = h.store.MarkStored(ctx, job.ID, file, nil)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
	err := h.store.Update(ctx, job.ID, func(stored *state.Job) error {
		stored.Status = end
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// issueTypes are the codes of FHIR's value set issue-type.
const issueTypes = " invalid structure required value invariant security login unknown expired forbidden suppressed processing " +
	"not-supported duplicate multiple-matches not-found deleted too-long code-invalid extension too-costly business-rule conflict " +
	"transient lock-error no-store exception timeout incomplete throttled informational "

// checkOutcome fails the test unless the answer is an OperationOutcome with the given status and one issue for each code.
func checkOutcome(t *testing.T, got answer, status int, codes ...string) {
	t.Helper()
	if got.status != status {
		t.Errorf("status: got %d, want %d (%s)", got.status, status, got.body)
	}
	if media := got.header.Get("Content-Type"); media != "application/fhir+json" {
		t.Errorf("Content-Type: got %q", media)
	}
	var outcome struct {
		ResourceType string `json:"resourceType"`
		Issue        []struct{ Severity, Code, Diagnostics string }
	}
	if err := json.Unmarshal([]byte(got.body), &outcome); err != nil {
		t.Fatalf("body is not JSON: %v: %q", err, got.body)
	}
	if outcome.ResourceType != "OperationOutcome" || len(outcome.Issue) != len(codes) {
		t.Fatalf("not an OperationOutcome with %d issues: %s", len(codes), got.body)
	}
	for i, issue := range outcome.Issue {
		if !slices.Contains([]string{"fatal", "error", "warning", "information"}, issue.Severity) {
			t.Errorf("severity: got %q", issue.Severity)
		}
		if issue.Code != codes[i] || !strings.Contains(issueTypes, " "+issue.Code+" ") {
			t.Errorf("code: got %q, want %q (%s)", issue.Code, codes[i], issue.Diagnostics)
		}
		if issue.Diagnostics == "" {
			t.Error("no diagnostics")
		}
	}
}

// await fails the test when nothing comes from a channel in time.
func await[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %s", what, patience)
		panic("unreachable")
	}
}
