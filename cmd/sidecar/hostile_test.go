package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// heard are the paths that an upstream was asked for, in their raw form.
type heard struct {
	mu    sync.Mutex
	paths []string
}

func (h *heard) add(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paths = append(h.paths, path)
}

// take returns the paths since the last call.
func (h *heard) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	paths := h.paths
	h.paths = nil
	return paths
}

// newHeard serves a sample server that notes what it is asked.
func newHeard(t *testing.T) (*heard, string) {
	t.Helper()
	sample, _ := newSample(t, fhirtest.Plain(), 1)
	h := &heard{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.add(r.RequestURI)
		sample.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return h, server.URL + "/fhir"
}

// raw sends bytes over a connection of its own and returns the statuses of all answers that come back.
func raw(t *testing.T, s *sidecar, text string) (statuses []int) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.config.Listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the sidecar has mostly done so before
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(conn, text) }() // the sidecar may hang up before it has read all
	for reader := bufio.NewReader(conn); ; {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return statuses
		}
		statuses = append(statuses, response.StatusCode)
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Error(err)
		}
		response.Body.Close()
	}
}

// hostileRequests are sent as they stand, LINE for a request of Patient/smuggled that must not reach the upstream.
var hostileRequests = []struct {
	name, text string
	status     int
}{
	{"two lengths", "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 60\r\n\r\n{}LINE", 400},
	{"a length and chunks", "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nTransfer-Encoding: chunked, chunked\r\n\r\n{}LINE", 501},
	{"chunks under another name", "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nLINE", 501},
	{"a length with a sign", "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nContent-Length: +2\r\n\r\n{}LINE", 400},
	{"a blank before the colon", "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nContent-Length : 60\r\n\r\nLINE", 400},
	{"a header that goes on before the first", "GET /fhir/$export HTTP/1.1\r\n Host: h\r\n\r\nLINE", 400},
	{"a zero byte in a header", "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nPrefer: a\x00b\r\n\r\nLINE", 400},
	{"a bare return in a header", "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nPrefer: a\rX: b\r\n\r\nLINE", 400},
	{"two hosts", "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\nLINE", 400},
	{"headers of two megabytes", "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nPrefer: " + strings.Repeat("a=b, ", 400_000) + "\r\n\r\n", 431},
}

// Ensure that a request whose end can be read in two ways never becomes two, and none is a failure of the sidecar's.
func TestHostileRequestsAreOneOrNone(t *testing.T) {
	t.Parallel()
	upstream, base := newHeard(t)
	s := startSidecar(t, base, nil)
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	const line = "GET /fhir/Patient/smuggled HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
	for _, test := range hostileRequests {
		t.Run(test.name, func(t *testing.T) {
			got := raw(t, s, strings.Replace(test.text, "LINE", line, 1))
			if len(got) != 1 || got[0] != test.status {
				t.Errorf("statuses: got %d, want %d alone", got, test.status)
			}
		})
	}
	if got := raw(t, s, line); len(got) != 1 || !strings.Contains(strings.Join(upstream.take(), " "), "/Patient/smuggled") {
		t.Errorf("the line itself is not forwarded: %d", got)
	}
}

// Ensure that a client in front of our routes cannot make the sidecar ask the upstream for another path with its
// credentials, and that whatever it says is answered below 500.
func TestHostilePathsStayWhereTheyAre(t *testing.T) {
	t.Parallel()
	upstream, base := newHeard(t)
	s := startSidecar(t, base, func(c *config) {
		c.UpstreamAuth.Header.Name, c.UpstreamAuth.Header.Value = "Authorization", "Bearer of-the-sidecar"
	})
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	long := strings.Repeat("x", 10_000)
	many := "_type=Patient" + strings.Repeat("&_type=Patient", 10_000)
	for _, test := range []struct {
		name, target, header string
		status               int
	}{
		{"Group of escaped dots", "/fhir/Group/%2e%2e/$export", "", 400},
		{"Group that leaves by a slash", "/fhir/Group/..%2fadmin/$export", "", 400},
		{"Group with a fragment", "/fhir/Group/a%23b/$export", "", 400},
		{"Group with a backslash", "/fhir/Group/..%5cadmin/$export", "", 404},
		{"Group escaped twice", "/fhir/Group/%252e%252e%252fadmin/$export", "", 404},
		{"Group of 10 kB", "/fhir/Group/" + long + "/$export", "", 404},
		{"job of escaped dots", "/fhir/$export-status/%2e%2e", "", 404},
		{"job with a zero byte", "/fhir/$export-status/%00", "", 404},
		{"job of 10 kB", "/fhir/$export-status/" + long, "", 404},
		{"job with a slash", "/fhir/$export-file/..%2f..%2fstate.db/x", "", 404},
		{"file with a zero byte", "/fhir/$export-file/x/%00", "", 404},
		{"file of 10 kB", "/fhir/$export-file/x/" + long, "", 404},
		{"attachment of dots", "/fhir/$export-attachment/x/y/../../metadata", "", 404},
		{"absolute form", "http://elsewhere.example/fhir/$export-status/x", "", 404},
		{"ten thousand parameters", "/fhir/$export?" + many, "", 400},
		{"Prefer of 500 kB", "/fhir/$export?_type=Unicorn", "Prefer: " + strings.Repeat("a=b, ", 100_000), 400},
		{"Forwarded of 500 kB", "/fhir/$export?_type=Unicorn", "Forwarded: " + strings.Repeat("for=a;host=b, ", 35_000), 400},
		{"another method by a header", "/fhir/$export-status/x", "X-HTTP-Method-Override: DELETE", 404},
		{"another address by a header", "/fhir/$export-status/x", "X-Original-URL: /fhir/Patient", 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			upstream.take()
			header := ""
			if test.header != "" {
				header = test.header + "\r\n"
			}
			got := raw(t, s, "GET "+test.target+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"+header+"\r\n")
			if len(got) != 1 || got[0] != test.status {
				t.Errorf("statuses: got %d, want %d alone", got, test.status)
			}
			for _, asked := range upstream.take() {
				path, _, _ := strings.Cut(asked, "?")
				plain, err := url.PathUnescape(path)
				if err != nil || !strings.HasPrefix(path, "/fhir/") || strings.Contains(plain, "/../") || strings.HasSuffix(plain, "/..") || strings.Contains(plain, "admin") && !strings.HasPrefix(path, "/fhir/Group/") {
					t.Errorf("the upstream was asked for %.200q", asked)
				}
			}
		})
	}
}

// Ensure that headers that never end are not waited for.
func TestHeadersThatNeverEndAreGivenUp(t *testing.T) {
	t.Parallel()
	_, base := newHeard(t)
	s := startSidecar(t, base, nil)
	begun := time.Now()
	got := raw(t, s, "GET /fhir/$export HTTP/1.1\r\nHost: h\r\nX-Slow: ")
	if took := time.Since(begun); took > 2*headerTimeout || len(got) > 1 || len(got) == 1 && got[0] >= 500 {
		t.Errorf("after %s: %d", took, got)
	}
}

// Ensure that no body of a kick-off, however it is made, is more than refused, and that none reaches the upstream.
func TestHostileBodiesAreRefused(t *testing.T) {
	t.Parallel()
	upstream, base := newHeard(t)
	s := startSidecar(t, base, nil)
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	const unicorn = `{"name":"_type","valueString":"Unicorn"}`
	body := func(parameters string) string {
		return `{"resourceType":"Parameters","parameter":[` + parameters + `]}`
	}
	for name, test := range map[string]struct {
		body, header string
		status       int
	}{
		"ten thousand parameters":      {body(unicorn + strings.Repeat(","+unicorn, 10_000)), "", 400},
		"brackets":                     {`{"resourceType":"Parameters","parameter":` + strings.Repeat("[", 900_000), "", 400},
		"brackets that are closed":     {body(`{"name":"_type","valueString":` + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000) + "}"), "", 400},
		"a number without end":         {body(`{"name":"_type","valueDecimal":` + strings.Repeat("9", 900_000) + "}"), "", 400},
		"a name that is said twice":    {body(`{"name":"_type","name":"_since","valueString":"Patient"}`), "", 400},
		"a value that is said twice":   {body(`{"name":"_type","valueString":"Patient","valueString":"Observation"}`), "", 400},
		"parameters twice":             {`{"resourceType":"Parameters","parameter":[],"parameter":[{"name":"_type","valueString":"Patient"}]}`, "", 400},
		"more than a megabyte":         {body(unicorn + strings.Repeat(" ", 1<<20)), "", 413},
		"a bomb":                       {"\x1f\x8b", "Content-Encoding: gzip\r\n", 415},
		"another character set":        {body(unicorn), "Content-Type: application/fhir+json; charset=utf-16\r\n", 415},
		"a form":                       {"_type=Patient", "Content-Type: application/x-www-form-urlencoded\r\n", 415},
		"parameters without a name":    {body(strings.Repeat("{},", 10_000) + "{}"), "", 400},
		"a Patient outside the server": {body(`{"name":"patient","valueReference":{"reference":"../../admin"}}`), "", 400},
		"a Patient of dots":            {body(`{"name":"patient","valueReference":{"reference":"Patient/.."}}`), "", 400},
	} {
		t.Run(name, func(t *testing.T) {
			upstream.take()
			if !strings.Contains(test.header, "Content-Type") {
				test.header += "Content-Type: application/fhir+json\r\n"
			}
			got := raw(t, s, fmt.Sprintf("POST /fhir/Patient/$export HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", test.header, len(test.body), test.body))
			if len(got) != 1 || got[0] != test.status {
				t.Errorf("statuses: got %d, want %d alone", got, test.status)
			}
			for _, asked := range upstream.take() {
				if path, _, _ := strings.Cut(asked, "?"); path != "/fhir/metadata" {
					t.Errorf("the upstream was asked for %.200q", asked)
				}
			}
		})
	}
}
