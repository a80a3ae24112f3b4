package proxy_test

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

// Write appends a line.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// Ensure that neither the log nor the outcome repeats what a client or a server sent, whatever goes wrong with it.
func TestTroubleIsToldWithoutWhatWasSent(t *testing.T) {
	for name, reply := range map[string]string{
		"no HTTP":        `{"resourceType":"Patient","id":"secret"}` + "\r\n\r\n",
		"bad status":     "HTTP/1.1 secret OK\r\n\r\n",
		"bad header":     "HTTP/1.1 200 OK\r\nsecret\r\n\r\n",
		"bad length":     "HTTP/1.1 200 OK\r\nContent-Length: secret\r\n\r\n",
		"bad chunk":      "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
		"bad encoding":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: secret\r\n\r\n",
		"bad statement":  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"secret\":]",
		"nothing at all": "",
	} {
		for _, path := range []string{"/Patient?identifier=secret", "/metadata?secret", "/$export?_type=Patient&_since=2021-01-01T00:00:00Z"} {
			t.Run(name+path[:4], func(t *testing.T) {
				upstream := newRawUpstream(t, func(_ received, conn net.Conn) bool {
					_, _ = io.WriteString(conn, reply) // the proxy may have hung up on it
					return false
				})
				log := &lines{}
				h := newHouse(t, "http://"+upstream.address+"/fhir", func(c *proxy.Config) {
					c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				})
				conn := dial(t, h.url)
				if _, err := io.WriteString(conn, "GET /fhir"+path+" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\nOrigin: https://secret\r\nConnection: close\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				answer, err := io.ReadAll(conn)
				if err != nil {
					t.Fatal(err)
				}
				if said := log.String(); strings.Contains(said, "secret") || strings.Contains(said, upstream.address+"/") {
					t.Errorf("the log tells too much: %s", said)
				}
				if strings.HasPrefix(string(answer), "HTTP/1.1 50") && strings.Contains(string(answer), "secret") {
					t.Errorf("the outcome tells too much: %s", answer)
				}
			})
		}
	}
}

// hanging is an upstream that answers a GET of some paths only.
type hanging []string

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && slices.Contains(h, strings.TrimPrefix(r.URL.Path, "/fhir")) {
		return stub{}.RoundTrip(r)
	}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Ensure that a server that hangs costs a kick-off ten seconds and no more, and other answers of ours one where a script
// asks.
func TestHangingServerIsGivenUpOn(t *testing.T) {
	for name, test := range map[string]struct {
		target  string
		answers hanging
		header  http.Header
		status  int
		code    string
		after   time.Duration
	}{
		"statement":   {"/fhir/$export", nil, nil, 503, "transient", 10 * time.Second},
		"type":        {"/fhir/$export?_type=Patient,Observation", hanging{"/metadata"}, nil, 503, "timeout", 10 * time.Second},
		"one of many": {"/fhir/$export?_type=Patient,Observation", hanging{"/metadata", "/Patient"}, nil, 503, "timeout", 10 * time.Second},
		"group":       {"/fhir/Group/1/$export", hanging{"/metadata"}, nil, 503, "timeout", 10 * time.Second},
		"preflight":   {"/fhir/$export?x=1", nil, http.Header{"Origin": {"https://app.example"}}, 400, "not-supported", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := test.answers
				client, err := fhir.NewClient(fhir.Config{BaseURL: "http://upstream.invalid/fhir", Transport: transport})
				if err != nil {
					t.Fatal(err)
				}
				upstream, err := fhir.ParseBase("http://upstream.invalid/fhir")
				if err != nil {
					t.Fatal(err)
				}
				handler, err := proxy.New(proxy.Config{
					Upstream: upstream, Intercept: true, Client: client, Exports: &exports{}, Jobs: &state.Store{}, Bucket: signing{}, LinkKey: linkKey, Transport: transport,
					TypesOf: func(_ state.Level, s *fhir.CapabilityStatement) ([]string, []string, error) { return s.Types, nil, nil },
					Log:     slog.New(slog.DiscardHandler),
				})
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, test.target, nil)
				for name, values := range test.header {
					request.Header[name] = values
				}
				recorder := httptest.NewRecorder()
				handler.ServeHTTP(recorder, request)
				checkOutcome(t, answer{recorder.Code, recorder.Header(), recorder.Body.String()}, test.status, test.code)
				if took := time.Since(begun); took != test.after {
					t.Errorf("took %s, want %s", took, test.after)
				}
				if wait := recorder.Header().Get("Retry-After"); (wait != "") != (test.status == http.StatusServiceUnavailable) {
					t.Errorf("Retry-After: got %q", wait)
				}
				time.Sleep(time.Minute) // a question to the server goes on for a while
			})
		})
	}
}
