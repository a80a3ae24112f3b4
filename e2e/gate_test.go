package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// gate stands in front of a server and lets a test act at a chosen moment of the traffic.
type gate struct {
	base string // of the gate, with the path of the server's base

	mu    sync.Mutex
	match func(*http.Request) bool
	left  int
	when  moment
	act   func()
}

// moment is where in a request the test acts.
type moment int

const (
	before   moment = iota // the server has not seen the request
	halfBody               // half a kilobyte of the request's or answer's body has passed
	after                  // the server has answered, the client does not know it yet
)

func (m moment) String() string { return [...]string{"before", "in the body of", "after"}[m] }

// startGate puts a gate before the server at base. The Host header is passed on, so that signatures stay right.
func startGate(t *testing.T, base string) *gate {
	t.Helper()
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{}
	forward := &httputil.ReverseProxy{
		Transport: client.Transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		when, act := g.pass(r)
		if act == nil {
			forward.ServeHTTP(w, r)
			return
		}
		switch when {
		case before:
			act()
			panic(http.ErrAbortHandler)
		case halfBody:
			if r.Method == http.MethodPut {
				r.Body = &tripwire{ReadCloser: r.Body, act: act}
			} else {
				w = &trippedWriter{ResponseWriter: w, act: act}
			}
			forward.ServeHTTP(w, r)
		case after:
			forward.ServeHTTP(httptest.NewRecorder(), r)
			act()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(front.Close)
	g.base = front.URL + target.Path
	return g
}

// arm lets act be called at the n-th request from now that matches.
func (g *gate) arm(match func(*http.Request) bool, n int, when moment, act func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.match, g.left, g.when, g.act = match, n, when, act
}

func (g *gate) pass(r *http.Request) (moment, func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.match == nil || !g.match(r) {
		return 0, nil
	}
	if g.left--; g.left > 0 {
		return 0, nil
	}
	g.match = nil
	return g.when, g.act
}

// tripwire acts once some of a body has been read.
type tripwire struct {
	io.ReadCloser
	act  func()
	seen int
}

func (r *tripwire) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:min(len(p), 512)])
	if r.seen += n; r.seen >= 512 && r.act != nil {
		r.act()
		r.act = nil
	}
	return n, err
}

// trippedWriter acts once some of an answer has been written.
type trippedWriter struct {
	http.ResponseWriter
	act func()
}

func (w *trippedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), 512)])
	if w.act != nil {
		if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
			flusher.Flush()
		}
		w.act()
		w.act = nil
	}
	if err == nil && n < len(p) {
		var rest int
		rest, err = w.ResponseWriter.Write(p[n:])
		n += rest
	}
	return n, err
}

// isPage matches the reading of rows, not counts, probes or histories.
func isPage(r *http.Request) bool {
	query := r.URL.Query()
	return r.Method == http.MethodGet && query.Has("_lastUpdated") && query.Get("_count") == "100" && !query.Has("_summary")
}

// isPut matches the upload of an output file.
func isPut(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, ".ndjson")
}

// isManifestPut matches the upload of the manifest, with which an export is sealed.
func isManifestPut(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/manifest.json")
}
