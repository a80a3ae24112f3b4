package proxy_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

// attachment is the address at the house of a Binary of one of its jobs.
func (h *house) attachment(job *state.Job, path string) string {
	h.t.Helper()
	address, ok := job.AttachmentAddress(path)
	if !ok {
		h.t.Fatalf("%s is not signed", path)
	}
	return h.base + strings.TrimPrefix(address, job.Kickoff.Base)
}

const (
	ownToken = "Bearer the-sidecars-own"
	note     = "<html>a note</html>"
)

// binaries is a server with one Binary, which only the sidecar may read.
type binaries struct {
	t     *testing.T
	asked atomic.Int64
}

func (b *binaries) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.asked.Add(1)
	for _, name := range []string{"Cookie", "X-Secret", "Origin", "Upgrade"} {
		if got := r.Header.Get(name); got != "" {
			b.t.Errorf("the server is sent %s: %s", name, got)
		}
	}
	body, err := io.ReadAll(r.Body)
	if r.Header.Get("Authorization") != ownToken || r.URL.RawQuery != "" || len(body) > 0 || err != nil {
		b.t.Errorf("the server is asked by %q with the query %q and the body %q, %v", r.Header.Get("Authorization"), r.URL.RawQuery, body, err)
	}
	w.Header().Set("Set-Cookie", "session=of-the-sidecar")
	w.Header().Set("WWW-Authenticate", "Bearer")
	switch {
	case r.URL.Path != "/fhir/Binary/note" && r.URL.Path != "/fhir/Binary/note/_history/1":
		w.WriteHeader(http.StatusNotFound)
	case r.Header.Get("Accept") == "application/fhir+json":
		w.Header().Set("Content-Type", "application/fhir+json")
		_, _ = io.WriteString(w, `{"resourceType":"Binary","id":"note"}`)
	default:
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Etag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(note))
	}
}

// newAttachmentHouse is a house before a server to which the sidecar has credentials of its own, with a job that signs.
func newAttachmentHouse(t *testing.T, upstream http.Handler, log *slog.Logger) (*house, state.Job) {
	t.Helper()
	server := httptest.NewServer(upstream)
	t.Cleanup(server.Close)
	h := newHouse(t, server.URL+"/fhir", func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir", Credentials: fhir.Static{"Authorization": {ownToken}}})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
		if log != nil {
			c.Log = log
		}
	})
	job := completed()
	job.AttachmentKey = state.NewAttachmentKey()
	h.addJob(job, twoFiles)
	return h, job
}

// Ensure a client without a token reads what the server gives to the sidecar, in the form and the part that it asks for, and
// that neither side's credentials reach the other.
func TestAttachmentIsReadWithTheSidecarsOwnCredentials(t *testing.T) {
	h, job := newAttachmentHouse(t, &binaries{t: t}, nil)
	address := h.attachment(&job, "Binary/note")
	for _, test := range []struct {
		name, method, address string
		header                []string
		status                int
		media, body           string
	}{
		{"raw", "GET", address, nil, 200, "text/html", note},
		{"resource", "GET", address, []string{"Accept", "application/fhir+json"}, 200, "application/fhir+json", `{"resourceType":"Binary","id":"note"}`},
		{"version", "GET", h.attachment(&job, "Binary/note/_history/1"), nil, 200, "text/html", note},
		{"encoded dollar", "GET", strings.Replace(address, "$", "%24", 1), nil, 200, "text/html", note},
		{"head", "HEAD", address, nil, 200, "text/html", ""},
		{"range", "GET", address, []string{"Range", "bytes=1-4"}, 206, "text/html", note[1:5]},
		{"not modified", "GET", address, []string{"If-None-Match", `"1"`}, 304, "", ""},
		{"query", "GET", address + "?_format=json&x=y", nil, 200, "text/html", note},
		{"client's own", "GET", address, []string{
			"Authorization", "Bearer client", "Cookie", "a=b", "X-Secret", "x", "Connection", "upgrade", "Upgrade", "x", "Origin", "",
		}, 200, "text/html", note},
	} {
		got := h.ask(test.method, test.address, test.header...)
		if got.status != test.status || got.body != test.body || got.header.Get("Content-Type") != test.media {
			t.Errorf("%s: got %d %q %q", test.name, got.status, got.header.Get("Content-Type"), got.body)
		}
		if got.header.Get("Set-Cookie")+got.header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: the client is sent %q", test.name, got.header)
		}
		if got.header.Get("Content-Security-Policy") != "sandbox" || got.header.Get("X-Content-Type-Options") != "nosniff" ||
			got.header.Get("Cache-Control") != "private, no-transform" {
			t.Errorf("%s: a browser is told %q", test.name, got.header)
		}
		if length := got.header.Get("Content-Length"); test.method == "HEAD" && length != strconv.Itoa(len(note)) {
			t.Errorf("%s: the length is %q", test.name, length)
		}
	}
}

// Ensure the server is asked for nothing that was not signed, and for nothing when the export is gone.
func TestAttachmentOpensNothingElse(t *testing.T) {
	server := &binaries{t: t}
	h, job := newAttachmentHouse(t, server, nil)
	address := h.attachment(&job, "Binary/note")
	for _, other := range []string{
		strings.Replace(address, "/Binary/note", "/Binary/other", 1),
		strings.Replace(address, "/Binary/note", "/Patient/note", 1),
		strings.Replace(address, "/Binary/note", "/Binary%2Fnote", 1),
		strings.Replace(address, "/0b6a/", "/other/", 1),
		address + "/_history/1", address + "/..", address + "/", address + "/$op",
		h.base + "/$export-attachment/0b6a/x/Binary/note",
	} {
		checkOutcome(t, h.ask(http.MethodGet, other), http.StatusNotFound, "not-found")
	}
	h.exports.retention = time.Second // it ended a minute ago
	checkOutcome(t, h.ask(http.MethodGet, address), http.StatusNotFound, "not-found")
	h.exports.retention = time.Hour
	h.ask(http.MethodDelete, h.base+"/$export-status/0b6a")
	checkOutcome(t, h.ask(http.MethodGet, address), http.StatusNotFound, "not-found")
	if asked := server.asked.Load(); asked != 0 {
		t.Errorf("the server was asked %d times", asked)
	}
}

// Ensure a redirect to a store reaches the client, and one on the server does not.
func TestAttachmentMayLieInAStore(t *testing.T) {
	to := new(string)
	h, job := newAttachmentHouse(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", *to)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}), nil)
	*to = "https://store.example/note?signature=x"
	if got := h.ask(http.MethodGet, h.attachment(&job, "Binary/note")); got.status != http.StatusTemporaryRedirect || got.header.Get("Location") != *to ||
		got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("a store: got %d %q", got.status, got.header)
	}
	for _, *to = range []string{"/fhir/Patient/1", "javascript:alert(1)", "file:///etc/passwd", "ftp://store.example/note", "https:note", "data:text/html,x"} {
		got := h.ask(http.MethodGet, h.attachment(&job, "Binary/note"))
		checkOutcome(t, got, http.StatusServiceUnavailable, "transient")
		if got.header.Get("Location") != "" {
			t.Errorf("the client is led to %s", *to)
		}
	}
}

// Ensure an attachment arrives while it is read, that a cut one is not taken for the whole, and that no line of the log names it.
func TestAttachmentIsStreamedAndCut(t *testing.T) {
	log := &lines{}
	goOn := make(chan struct{})
	h, job := newAttachmentHouse(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	response, err := http.DefaultTransport.RoundTrip(h.request(http.MethodGet, h.attachment(&job, "Binary/secret-id"), "", "Accept-Encoding", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.ReadFull(response.Body, make([]byte, 1<<19)); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if _, err := io.Copy(io.Discard, response.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end of a cut attachment: %v", err)
	}
	if strings.Contains(log.String(), "secret-id") || !strings.Contains(log.String(), "attachment not delivered") {
		t.Errorf("the log has %s", log)
	}
}
