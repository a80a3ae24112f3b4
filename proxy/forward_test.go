package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/proxy"
)

// received is a request as it stood on the wire.
type received struct {
	line    string
	header  http.Header // Host among them
	body    string
	trailer http.Header
}

// rawUpstream is an upstream that records requests byte for byte and answers what reply writes. reply is called in the
// connection's goroutine; when it returns false the connection is closed.
type rawUpstream struct {
	address string
	seen    chan received
}

func newRawUpstream(t *testing.T, reply func(received, net.Conn) bool) *rawUpstream {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &rawUpstream{address: listener.Addr().String(), seen: make(chan received, 100)}
	ended := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			go u.serve(conn, reply)
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close() // the accept loop ends with it
		<-ended
		for _, conn := range conns {
			_ = conn.Close() // most are closed already
		}
	})
	return u
}

func (u *rawUpstream) serve(conn net.Conn, reply func(received, net.Conn) bool) {
	defer func() { _ = conn.Close() }()
	var wire bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(conn, &wire))
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		head, _, _ := strings.Cut(wire.String(), "\r\n\r\n")
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		lines := strings.Split(head, "\r\n")
		got := received{line: lines[0], header: http.Header{}, body: string(body), trailer: request.Trailer}
		for _, line := range lines[1:] {
			name, value, _ := strings.Cut(line, ":")
			got.header.Add(name, strings.TrimPrefix(value, " "))
		}
		u.seen <- got
		wire.Reset()
		if !reply(got, conn) {
			return
		}
	}
}

// replying answers every request with the same bytes.
func replying(raw string) func(received, net.Conn) bool {
	return func(_ received, conn net.Conn) bool {
		_, err := io.WriteString(conn, raw)
		return err == nil
	}
}

const plainReply = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

// dial connects to a test server by its address or URL.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(address, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some tests close it themselves
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// exchange sends raw bytes and reads the final answer, after any interim ones.
func exchange(t *testing.T, address, raw string) (answer, http.Header) {
	t.Helper()
	conn := dial(t, address)
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(raw, " ")
	reader := bufio.NewReader(conn)
	for {
		response, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode >= http.StatusOK {
			return answer{response.StatusCode, response.Header, string(body)}, response.Trailer
		}
	}
}

// Ensure that the upstream sees the same request, byte for byte where HTTP lets it be, as if there were no proxy.
func TestForwardKeepsRequests(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 1<<16)
	post := func(header, body string) string {
		return fmt.Sprintf("POST /fhir/Patient HTTP/1.1\r\nHost: fhir.example.org\r\n%sContent-Length: %d\r\n\r\n%s", header, len(body), body)
	}
	get := func(header string) string {
		return "GET /fhir/Patient/1 HTTP/1.1\r\nHost: fhir.example.org\r\n" + header + "\r\n"
	}
	cases := map[string]string{
		"accept encoding as sent": get("Accept-Encoding: br;q=1.0, gzip;q=0.5\r\nUser-Agent: curl/8.1\r\n"),
		"odd headers":             get("X-One: a\r\nx-one:  b , c\r\nX-Empty:\r\nCookie: a=1; b=2\r\nAuthorization: Bearer a.b-c_d\r\nX-Umlaut: \xc3\xa9\r\n"),
		"conditional":             get("If-None-Match: W/\"3\"\r\nIf-Modified-Since: Tue, 02 Jan 2024 03:04:05 GMT\r\n"),
		"range":                   get("Range: bytes=0-10\r\n"),
		"te":                      get("Te: trailers\r\n"),
		"other schemes' headers":  get("X-Real-Ip: 10.1.1.1\r\nX-Forwarded-Prefix: /a\r\nVia: 1.1 edge\r\nTraceparent: 00-a-b-01\r\nOrigin: https://a.example\r\n"),
		"respond-async elsewhere": get("Prefer: respond-async\r\nPrefer: handling=lenient\r\n"),
		"host with port":          "GET /fhir/Patient HTTP/1.1\r\nHost: fhir.example.org:8443\r\n\r\n",
		"get with a body":         "GET /fhir/Patient HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"delete with a body":      "DELETE /fhir/Patient/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
		"patch":                   "PATCH /fhir/Patient/1 HTTP/1.1\r\nHost: h\r\nContent-Type: application/json-patch+json\r\nContent-Length: 2\r\n\r\n[]",
		"options":                 "OPTIONS /fhir/$export HTTP/1.1\r\nHost: h\r\nOrigin: https://app.example\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"head":                    "HEAD /fhir/Patient HTTP/1.1\r\nHost: h\r\n\r\n",
		"own method":              "REPORT /fhir/Patient HTTP/1.1\r\nHost: h\r\n\r\n",
		"post without a body":     post("", ""),
		"batch":                   post("Content-Type: application/fhir+json\r\nIf-None-Exist: identifier=x|1\r\n", "{\"resourceType\":\"Bundle\", \"x\": 1.10}\r\n"),
		"large body":              post("", large),
		"gzip body":               post("Content-Encoding: gzip\r\n", "\x1f\x8b\x08\x00\x00\x00"),
		"expect":                  post("Expect: 100-continue\r\n", "{}"),
		"chunked body": "POST /fhir HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
		"trailers": "POST /fhir HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-More\r\n\r\n" +
			"3\r\nabc\r\n0\r\nX-Sum: 1.10\r\nX-More: two\r\n\r\n",
	}
	for _, target := range []string{
		"/", "/fhir", "/fhir/", "//Patient", "/fhir//Patient//1", "/fhir/Patient/a%2Fb", "/fhir/../x", "/fhir/Patient/../metadata",
		"/fhir/./Patient", "/fhir/Patient/a|b", `/fhir/Patient/"q"^{x}`, "/fhir/Patient;v=1/x", "/fhir/Patient/%41%7e", "/fhir/Patient/\xc3\xa9",
		"/fhir/Patient/%C3%A9", "/fhir/Patient/1/$everything", "/fhir/Patient/1/$export", "/fhir/Observation/$export", "/fhir/Group/a/b/$export",
		"/fhir/Group/a%2Fb/$exports", "/x/fhir/$export", "/fhir/$exports", "/fhir/$EXPORT", "/fhir/$export/x", "/fhir/$export//", "/$export", "/fhirx/$export",
		"/fhir/$export-status", "/fhir/$export-status/", "/fhir/$export-status/a/b", "/fhir/$export-file/a", "/fhir/$export-poll-status/a", "/fhir/%2524export",
		"/fhir/Patient?url=/fhir/$export", "/fhir/Patient?a=1;b=2&c=%zz", "/fhir/Patient?", "/fhir/Patient?+", "/fhir/Patient?a=b+c%20d&&a=b&=", "/fhir/Patient?a=?b#c",
		"/fhir?_getpages=5b1&_format=json", "/fhir/Patient?name=\xc3\xa9|x",
	} {
		cases["target "+target] = "GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n"
	}
	upstream := newRawUpstream(t, func(got received, conn net.Conn) bool {
		reply := plainReply
		if strings.HasPrefix(got.line, "HEAD ") {
			reply = strings.TrimSuffix(plainReply, "ok")
		}
		return replying(reply)(got, conn)
	})
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(name, func(t *testing.T) {
			exchange(t, upstream.address, cases[name])
			want := await(t, "direct request", upstream.seen)
			exchange(t, h.url, cases[name])
			got := await(t, "forwarded request", upstream.seen)
			if got.line != want.line {
				t.Errorf("request line:\n got %q\nwant %q", got.line, want.line)
			}
			if got.body != want.body {
				t.Errorf("body: got %d bytes, want %d", len(got.body), len(want.body))
			}
			compareHeaders(t, "header", got.header, want.header, "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto")
			compareHeaders(t, "trailer", got.trailer, want.trailer)
		})
	}
}

// compareHeaders compares values exactly. White space around a value is no part of it, and the order of the names in
// Trailer means nothing.
func compareHeaders(t *testing.T, what string, got, want http.Header, added ...string) {
	t.Helper()
	clean := func(header http.Header) map[string]string {
		out := map[string]string{}
		for name, values := range header {
			for i := range values {
				values[i] = strings.TrimSpace(values[i])
			}
			if name == "Trailer" {
				values = strings.Split(strings.ReplaceAll(strings.Join(values, ","), " ", ""), ",")
				slices.Sort(values)
			}
			out[name] = strings.Join(values, "\n")
		}
		return out
	}
	gotten, wanted := clean(got), clean(want)
	for _, name := range added {
		delete(gotten, name)
	}
	if !maps.Equal(gotten, wanted) {
		t.Errorf("%s:\n got %q\nwant %q", what, gotten, wanted)
	}
}

func TestForwardOverridesHost(t *testing.T) {
	upstream := newRawUpstream(t, replying(plainReply))
	h := newHouse(t, "http://"+upstream.address+"/fhir", func(c *proxy.Config) { c.UpstreamHost = "inside.example" })
	exchange(t, h.url, "GET /fhir/Patient HTTP/1.1\r\nHost: outside.example\r\n\r\n")
	if got := await(t, "request", upstream.seen).header.Get("Host"); got != "inside.example" {
		t.Errorf("Host: got %q, want %q", got, "inside.example")
	}
}

func TestForwardDropsHopByHopHeaders(t *testing.T) {
	upstream := newRawUpstream(t, replying("HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\nContent-Length: 2\r\n\r\nok"))
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	got, _ := exchange(t, h.url, "GET /fhir/Patient HTTP/1.1\r\nHost: h\r\nConnection: X-Mine\r\nX-Mine: 1\r\nProxy-Connection: x\r\nX-Kept: 2\r\n\r\n")
	sent := await(t, "request", upstream.seen).header
	if sent.Get("X-Mine") != "" || sent.Get("Proxy-Connection") != "" || sent.Get("X-Kept") != "2" {
		t.Errorf("request header: got %q", sent)
	}
	if got.header.Get("X-Hop") != "" || got.header.Get("Keep-Alive") != "" || got.header.Get("X-End") != "2" {
		t.Errorf("response header: got %q", got.header)
	}
}

// Ensure that the client sees the same answer as if there were no proxy.
func TestForwardKeepsAnswers(t *testing.T) {
	const date = "Date: Tue, 02 Jan 2024 03:04:05 GMT\r\n"
	large := strings.Repeat("0123456789abcdef", 1<<16)
	for name, test := range map[string]struct{ method, reply string }{
		"hint, no type":     {"GET", "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\n" + date + "Content-Length: 6\r\n\r\n<html>"},
		"no content type":   {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 6\r\n\r\n<html>"},
		"odd headers":       {"GET", "HTTP/1.1 200 OK\r\n" + date + "Server: Jetty\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2; Path=/\r\nx-request-id: 7\r\nVary: Origin\r\nContent-Length: 0\r\n\r\n"},
		"created":           {"POST", "HTTP/1.1 201 Created\r\n" + date + "Location: http://inside/fhir/Patient/1/_history/1\r\nETag: W/\"1\"\r\nContent-Length: 0\r\n\r\n"},
		"redirect":          {"GET", "HTTP/1.1 302 Found\r\n" + date + "Location: /login\r\nContent-Length: 0\r\n\r\n"},
		"no content":        {"DELETE", "HTTP/1.1 204 No Content\r\n" + date + "\r\n"},
		"not modified":      {"GET", "HTTP/1.1 304 Not Modified\r\n" + date + "ETag: W/\"3\"\r\nCache-Control: no-cache\r\n\r\n"},
		"partial":           {"GET", "HTTP/1.1 206 Partial Content\r\n" + date + "Content-Type: a/b\r\nContent-Range: bytes 0-1/10\r\nContent-Length: 2\r\n\r\nab"},
		"challenges":        {"GET", "HTTP/1.1 401 Unauthorized\r\n" + date + "Content-Type: a/b\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\nContent-Length: 1\r\n\r\nx"},
		"error page":        {"GET", "HTTP/1.1 500 Oops\r\n" + date + "Content-Type: text/html\r\nContent-Length: 5\r\n\r\n<p>x\n"},
		"own status":        {"GET", "HTTP/1.1 599 Own\r\n" + date + "Content-Length: 0\r\n\r\n"},
		"head":              {"HEAD", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: a/b\r\nContent-Length: 12345\r\nETag: \"x\"\r\n\r\n"},
		"gzip":              {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: a/b\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n\r\n\x1f\x8b\x08\x00\x00\x00"},
		"large":             {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: a/b\r\nContent-Length: " + fmt.Sprint(len(large)) + "\r\n\r\n" + large},
		"chunked":           {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"},
		"trailers":          {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: a/b\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1.10\r\n\r\n"},
		"hint, metadata":    {"GET", "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\nok"},
		"metadata not JSON": {"GET", "HTTP/1.1 200 OK\r\n" + date + "Content-Type: text/turtle\r\nContent-Length: 2\r\n\r\nok"},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := newRawUpstream(t, replying(test.reply))
			h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
			path := "/fhir/Patient"
			if strings.Contains(name, "metadata") {
				path = "/fhir/metadata"
			}
			raw := test.method + " " + path + " HTTP/1.1\r\nHost: h\r\n"
			if test.method == "POST" {
				raw += "Content-Length: 0\r\n"
			}
			want, wantTrailer := exchange(t, upstream.address, raw+"\r\n")
			got, gotTrailer := exchange(t, h.url, raw+"\r\n")
			if got.status != want.status {
				t.Errorf("status: got %d, want %d", got.status, want.status)
			}
			if got.body != want.body {
				t.Errorf("body: got %d bytes, want %d", len(got.body), len(want.body))
			}
			compareHeaders(t, "header", got.header, want.header)
			compareHeaders(t, "trailer", gotTrailer, wantTrailer)
		})
	}
}

func TestForwardKeepsInterimAnswers(t *testing.T) {
	upstream := newRawUpstream(t, replying("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"+plainReply))
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	conn := dial(t, h.url)
	if _, err := io.WriteString(conn, "GET /fhir/Patient HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	var statuses []int
	for range 2 {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		statuses = append(statuses, response.StatusCode)
		hint := response.Header.Get("Link") != ""
		if hint != (response.StatusCode == http.StatusEarlyHints) {
			t.Errorf("status %d has Link: %t", response.StatusCode, hint)
		}
	}
	if !slices.Equal(statuses, []int{103, 200}) {
		t.Errorf("statuses: got %v", statuses)
	}
}
