package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure that a bucket that cannot be opened is opened again by the next use, and only once when it works.
func TestLateBucketIsOpenedAgainAfterAFailure(t *testing.T) {
	errAway := errors.New("away")
	tries := 0
	bucket := &lateBucket{open: func(context.Context) (blob.Bucket, error) {
		if tries++; tries <= 4 {
			return nil, errAway
		}
		return blob.NewDir(t.TempDir())
	}}
	ctx := t.Context()
	put := func() error { return bucket.Put(ctx, "a", blob.Media{Type: "text/plain"}, strings.NewReader("a")) }
	for name, use := range map[string]func() error{
		"put":    put,
		"open":   func() error { _, err := bucket.Open(ctx, "a", 0); return err },
		"sign":   func() error { _, _, err := bucket.SignURL(ctx, "a", time.Minute); return err },
		"delete": func() error { return bucket.Delete(ctx, "a") },
	} {
		if err := use(); !errors.Is(err, errAway) {
			t.Errorf("%s while it is away: got %v", name, err)
		}
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	body, err := bucket.Open(ctx, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := bucket.SignURL(ctx, "a", time.Minute); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("sign: got %v", err)
	}
	if err := bucket.Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
	if tries != 5 {
		t.Errorf("opened %d times, want 5", tries)
	}
}

// serveAt serves a handler at an address, which may have been in use before, and returns how to end that at once.
func serveAt(t *testing.T, address string, handler http.Handler) (end func()) {
	t.Helper()
	var config net.ListenConfig
	var listener net.Listener
	until(t, "address", func() (free bool) {
		var err error
		listener, err = config.Listen(t.Context(), "tcp", address)
		return err == nil
	})
	server := httptest.NewUnstartedServer(handler)
	if err := server.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	server.Listener = listener
	server.Start()
	end = func() {
		server.CloseClientConnections()
		server.Close()
	}
	t.Cleanup(end)
	return end
}

// freeAddress is one at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := fhirtest.FreeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// Ensure that a sidecar that starts before its server refuses politely, and works as soon as the server is there.
func TestUpstreamDownAtTheStart(t *testing.T) {
	t.Parallel()
	sample, _ := newSample(t, fhirtest.Plain(), 1)
	address := freeAddress(t)
	upstream := "http://" + address + "/fhir"
	s := startSidecar(t, upstream, nil)
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	for _, path := range []string{"/$export", "/Patient/$export?_type=Patient", "/Group/demo-group/$export"} {
		checkOutcome(t, ask(t, http.MethodGet, s.base+path), http.StatusServiceUnavailable, "transient")
	}
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/Patient"), http.StatusBadGateway, "transient")
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/metadata"), http.StatusBadGateway, "transient")
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/$export-status/x"), http.StatusNotFound, "not-found")
	checkOutcome(t, ask(t, http.MethodPut, s.base+"/$export"), http.StatusMethodNotAllowed, "not-supported")
	if got := ask(t, http.MethodGet, "http://"+s.server.back.Addr().String()+"/readyz"); got.status != http.StatusOK {
		t.Errorf("/readyz: got %d", got.status)
	}
	serveAt(t, address, sample)
	s.checkForwards(upstream)
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))
}

// Ensure that a server that goes away while an export runs costs time only.
func TestUpstreamDownLater(t *testing.T) {
	t.Parallel()
	sample, _ := newSample(t, fhirtest.Plain(), 5)
	address := freeAddress(t)
	upstream := "http://" + address + "/fhir"
	end := serveAt(t, address, sample)
	s := startSidecar(t, upstream, func(c *config) { c.MaxRunning = 2 })
	done, _ := s.export("/$export?_type=Patient")
	status := s.kickOff("/$export")
	end()
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/$export", "Authorization", "Bearer new"), http.StatusServiceUnavailable, "transient")
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/Patient"), http.StatusBadGateway, "transient")
	if got := ask(t, http.MethodGet, done); got.status != http.StatusOK {
		t.Errorf("manifest of a finished export: got %d", got.status)
	}
	if got := ask(t, http.MethodGet, status); got.status != http.StatusAccepted && got.status != http.StatusOK {
		t.Errorf("status of a running export: got %d %s", got.status, got.body)
	}
	serveAt(t, address, sample)
	s.checkForwards(upstream)
	checkFiles(t, s.manifest(status), expected(t, sample, nil))
}

// Ensure that a server that answers with a login page while an export runs does not spoil it.
func TestUpstreamAnswersHTMLLater(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 5)
	s := startSidecar(t, upstream, nil)
	s.export("/$export?_type=Patient")
	sample.Fail(fhirtest.Fault{HTML: true, Times: 2, Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") }})
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))
}

// Ensure that what the upstream refuses for good while an export runs is told with the type and nothing else.
func TestUpstreamRefusesATypeLater(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 5)
	s := startSidecar(t, upstream, nil)
	s.export("/$export?_type=Patient")
	sample.Fail(fhirtest.Fault{Status: http.StatusForbidden, Times: -1, Match: func(r *http.Request) bool {
		return r.URL.Path == "/fhir/Condition" && r.URL.Query().Has("_sort")
	}})
	got := s.finish(s.kickOff("/$export"))
	checkOutcome(t, got, http.StatusInternalServerError, "forbidden")
	if !strings.Contains(got.body, "Condition") || strings.Contains(got.body, "http") || strings.Contains(got.body, "?") {
		t.Errorf("outcome: got %s", got.body)
	}
}

// Ensure that an export that is interrupted by a stop ends as if it had not been.
func TestServeGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	for name, match := range map[string]func(*http.Request) bool{
		"at the first search": func(r *http.Request) bool { return strings.Contains(r.URL.RawQuery, "_lastUpdated") },
		"while reading":       func(r *http.Request) bool { return r.URL.Path == "/fhir/Observation" && r.URL.Query().Has("_sort") },
		"in the history":      func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/_history") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sample, upstream := newSample(t, fhirtest.Plain(), 20)
			s := startSidecar(t, upstream, func(c *config) { c.PageSize = 10 })
			s.export("/$export?_type=Patient") // the probes are over, so that the fault meets the export itself
			reached := make(chan struct{})
			first := sync.OnceFunc(func() { close(reached) })
			sample.Fail(fhirtest.Fault{Match: match, Hang: true, Times: -1, Do: func(*http.Request) { first() }})
			status := s.kickOff("/Patient/$export")
			select {
			case <-reached:
			case <-time.After(patience):
				t.Fatal("the moment was not reached")
			}
			s.stop()
			sample.ClearFaults()
			s.start()
			checkFiles(t, s.manifest(status), expected(t, sample, patientIDs(1, 20)))
		})
	}
}

// Ensure that DELETE ends the work on an export that hangs in a search, frees its slot at once, and holds after a restart.
func TestDeleteEndsARunningExportForGood(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 5)
	s := startSidecar(t, upstream, nil)
	s.export("/$export?_type=Patient") // the probes are over
	reached, left := make(chan struct{}), make(chan struct{})
	first, gone := sync.OnceFunc(func() { close(reached) }), sync.OnceFunc(func() { close(left) })
	sample.Fail(fhirtest.Fault{ // all searches hang, so that no other part of the export can notice its end
		Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") },
		Hang:  true,
		Times: -1,
		Do: func(r *http.Request) {
			context.AfterFunc(r.Context(), gone)
			first()
		},
	})
	begun := time.Now()
	status := s.kickOff("/Patient/$export")
	select {
	case <-reached:
	case <-time.After(patience):
		t.Fatal("no search was reached")
	}
	running := ask(t, http.MethodGet, status)
	most := max(2, int(time.Since(begun).Seconds()/2)) // a pause is half of what an export has taken at most
	if wait, err := strconv.Atoi(running.header.Get("Retry-After")); err != nil || wait < 1 || wait > most || running.header.Get("X-Progress") == "" {
		t.Errorf("status while it runs: got %d %q", running.status, running.header)
	}
	checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
	checkOutcome(t, ask(t, http.MethodGet, status), http.StatusNotFound, "not-found")
	sample.ClearFaults()
	next := s.kickOff("/Patient/$export")
	select {
	case <-left:
	case <-time.After(patience):
		t.Error("a search of the deleted export goes on")
	}
	checkFiles(t, s.manifest(next), expected(t, sample, patientIDs(1, 5)))
	checkOutcome(t, ask(t, http.MethodDelete, next), http.StatusAccepted, "informational")
	s.stop()
	s.start()
	for _, address := range []string{status, next} {
		checkOutcome(t, ask(t, http.MethodGet, address), http.StatusNotFound, "not-found")
		id := strings.TrimPrefix(address, s.base+"/$export-status/")
		until(t, "spool and files removed", func() bool {
			return !slices.ContainsFunc(filesBelow(t, s.config.Data), func(path string) bool { return strings.Contains(path, id) })
		})
	}
}

func TestServeRefusesAFolderInUseOrOfANewerVersion(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	args := []string{"serve", "-upstream", upstream, "-listen", "127.0.0.1:0", "-data", s.config.Data}
	err := run(t.Context(), args, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("second process: got %v", err)
	}
	s.stop()
	path := filepath.Join(s.config.Data, "state.db")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.ReplaceAll(raw, []byte("version1"), []byte("version9"))
	if bytes.Equal(newer, raw) {
		t.Fatal("the state file holds no version")
	}
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), args, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("newer state: got %v", err)
	}
}

// Ensure that a stop lets an answer that has begun reach its client whole, and takes no new connection meanwhile.
func TestServeFinishesOpenRequestsWhenStopped(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/fhir/Binary/1" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "first")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		close(begun)
		<-goOn
		_, _ = io.WriteString(w, "later")
	}))
	t.Cleanup(upstream.Close)
	s := startSidecar(t, upstream.URL+"/fhir", func(c *config) { c.ShutdownGrace = patience })
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/Binary/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	<-begun
	s.cancel()
	until(t, "port closed", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.config.Listen)
		return err != nil || conn.Close() != nil
	})
	close(goOn)
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "firstlater" {
		t.Errorf("answer: got %q, %v", body, err)
	}
}
