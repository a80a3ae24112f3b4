package fidelity

import (
	"bufio"
	"fmt"
	"strings"
)

// large is a body that fits into no buffer.
var large = strings.Repeat("0123456789abcdef", 1<<16)

// sent is a request, and how it has to arrive at the server; empty means as it was sent.
type sent struct{ name, nginx, request, arrives string }

// reasons why nginx differs.
const (
	noTrailers   = "it drops the trailer of a request"
	ownForms     = "it does not take this form of a request line"
	ownMethods   = "it does not take methods of this form"
	ownExpect    = "it answers Expect itself, and does not pass it on"
	noTE         = "it does not pass TE on"
	ownErrors    = "it answers 400 before it asks the server"
	ownLength    = "it counts a chunked body that came at once"
	noNamedField = "it passes on fields that Connection names"
)

func requests() []sent {
	table := []sent{
		{name: "get", request: "GET /fhir/Patient/1 HTTP/1.1\nHost: fhir.example.org\n\n"},
		{name: "host with port", request: "GET /fhir/Patient/1 HTTP/1.1\nHost: fhir.example.org:8443\n\n"},
		{name: "head", request: "HEAD /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{name: "delete", request: "DELETE /fhir/Patient/1 HTTP/1.1\nHost: h\n\n"},
		{name: "delete with a body", request: "DELETE /fhir/Patient/1 HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc"},
		{name: "get with a body", request: "GET /fhir/Patient/1 HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc"},
		{name: "get with length 0", request: "GET /fhir/Patient/1 HTTP/1.1\nHost: h\nContent-Length: 0\n\n"},
		{name: "get with a chunked body", nginx: ownLength, request: "GET /fhir/Patient/1 HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n0\r\n\r\n"},
		{name: "patch", request: "PATCH /fhir/Patient/1 HTTP/1.1\nHost: h\nContent-Type: application/json-patch+json\nContent-Length: 2\n\n[]"},
		{name: "put with a version", request: "PUT /fhir/Patient/1 HTTP/1.1\nHost: h\nIf-Match: W/\"3\"\nContent-Length: 2\n\n{}"},
		{name: "unknown method", request: "REPORT /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{name: "method with a hyphen", request: "M-SEARCH /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{name: "method in small letters", nginx: ownMethods, request: "get /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{name: "preflight", request: "OPTIONS /fhir/$export HTTP/1.1\nHost: h\nOrigin: https://app.example\nAccess-Control-Request-Method: GET\nAccess-Control-Request-Headers: prefer\n\n"},
		{name: "options of the server", nginx: ownForms, request: "OPTIONS * HTTP/1.1\nHost: h\n\n"},
		{name: "absolute form", request: "GET http://h/fhir/a%2Fb?x=1;y HTTP/1.1\nHost: h\n\n", arrives: "GET /fhir/a%2Fb?x=1;y HTTP/1.1\nHost: h\n\n"},
		{name: "absolute form of an odd path", request: "GET http://h//fhir/a|b?x|y HTTP/1.1\nHost: h\n\n", arrives: "GET //fhir/a|b?x|y HTTP/1.1\nHost: h\n\n"},
		{name: "HTTP/1.0", request: "GET /fhir/Patient HTTP/1.0\nHost: h\n\n", arrives: "GET /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{name: "post without a body", request: "POST /fhir/Patient HTTP/1.1\nHost: h\nContent-Length: 0\n\n"},
		{name: "post without a length", request: "POST /fhir/Patient HTTP/1.1\nHost: h\n\n"},
		{
			name:    "post",
			request: "POST /fhir HTTP/1.1\nHost: h\nContent-Type: application/fhir+json\nIf-None-Exist: identifier=x|1\nContent-Length: 16\n\n{\"x\": \r\n\r\n 1.10}",
		},
		{name: "post of 1 MB", request: fmt.Sprintf("POST /fhir HTTP/1.1\nHost: h\nContent-Length: %d\n\n%s", len(large), large)},
		{name: "chunked post of 1 MB", request: "POST /fhir HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n" + inChunks(large, 7001) + "0\r\n\r\n"},
		{name: "chunks of one byte", nginx: ownLength, request: "POST /fhir HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n" + inChunks("abcdefgh", 1) + "0\r\n\r\n"},
		{name: "chunked and empty", nginx: ownLength, request: "POST /fhir HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\r\n\r\n"},
		{name: "chunk extensions", nginx: ownLength, request: "POST /fhir HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n3;a=b\r\nabc\r\n0;c\r\n\r\n"},
		{name: "gzip body", request: "POST /fhir HTTP/1.1\nHost: h\nContent-Encoding: gzip\nContent-Length: 6\n\n\x1f\x8b\x08\x00\x00\x00"},
		{
			name: "trailers", nginx: noTrailers,
			request: "POST /fhir HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nTrailer: X-Sum, X-More\n\n3\r\nabc\r\n0\r\nX-Sum: 1.10\r\nX-More: two\r\n\r\n",
		},
		{name: "te", nginx: noTE, request: "GET /fhir HTTP/1.1\nHost: h\nTE: trailers\nConnection: TE\n\n"},
		{name: "te of one hop", request: "GET /fhir HTTP/1.1\nHost: h\nTE: deflate;q=0.5\nConnection: TE\n\n", arrives: "GET /fhir HTTP/1.1\nHost: h\n\n"},
		{
			name: "fields of one hop", nginx: noNamedField,
			request: "GET /fhir HTTP/1.1\nHost: h\nConnection: x-mine, X-Other\nX-Mine: 1\nX-Other: 2\nX-Kept: 3\nKeep-Alive: 5\n\n",
			arrives: "GET /fhir HTTP/1.1\nHost: h\nX-Kept: 3\n\n",
		},
		{name: "absolute form with another host", request: "GET http://other/fhir HTTP/1.1\nHost: h\n\n", arrives: "GET /fhir HTTP/1.1\nHost: other\n\n", nginx: "it keeps the field Host"},
		{
			name:    "behind another proxy",
			request: "GET /fhir HTTP/1.1\nHost: h\nX-Forwarded-For: 10.1.1.1\nX-Forwarded-Host: public.example\nX-Forwarded-Proto: https\n\n",
			arrives: "GET /fhir HTTP/1.1\nHost: h\nX-Forwarded-For: 10.1.1.1, 127.0.0.1\nX-Forwarded-Host: public.example\nX-Forwarded-Proto: https\n\n",
		},
		{
			name: "behind another proxy that says Forwarded", nginx: "it does not continue Forwarded",
			request: "GET /fhir HTTP/1.1\nHost: h\nForwarded: for=10.1.1.1;host=public.example\nForwarded: for=\"[2001:db8::1]\"\n\n",
			arrives: "GET /fhir HTTP/1.1\nHost: h\nForwarded: for=10.1.1.1;host=public.example, for=\"[2001:db8::1]\", for=127.0.0.1\n" +
				"X-Forwarded-For: 10.1.1.1, 2001:db8::1, 127.0.0.1\nX-Forwarded-Host: public.example\nX-Forwarded-Proto: http\n\n",
		},
		{
			name:    "from the client itself",
			request: "GET /fhir HTTP/1.1\nHost: h:1\n\n",
			arrives: "GET /fhir HTTP/1.1\nHost: h:1\nX-Forwarded-For: 127.0.0.1\nX-Forwarded-Host: h:1\nX-Forwarded-Proto: http\n\n",
		},
		{
			// A client must not be able to take away what a hop before us has said of it.
			name: "forwarding fields that Connection names", nginx: "it does not continue Forwarded",
			request: "GET /fhir HTTP/1.1\nHost: h\nConnection: X-Forwarded-For, X-Forwarded-Host, Forwarded\nX-Forwarded-For: 10.1.1.1\nX-Forwarded-Host: public.example\nForwarded: for=10.1.1.1\n\n",
			arrives: "GET /fhir HTTP/1.1\nHost: h\nX-Forwarded-For: 10.1.1.1, 127.0.0.1\nX-Forwarded-Host: public.example\nForwarded: for=10.1.1.1, for=127.0.0.1\n\n",
		},
	}
	odd := append(fieldRequests(), targetRequests()...)
	for _, row := range odd { // with a body of unknown length they may take another way
		head := "POST " + strings.TrimSuffix(strings.TrimPrefix(row.request, "GET "), "\n")
		table = append(table, row, sent{name: row.name + " chunked", nginx: ownLength, request: head + "Transfer-Encoding: chunked\n\n3\r\nabc\r\n0\r\n\r\n"})
	}
	return table
}

// fieldRequests are those whose header is odd.
func fieldRequests() []sent {
	var table []sent
	for _, fields := range []string{
		"Accept-Encoding: br;q=1.0, gzip;q=0.5\nUser-Agent: curl/8.1",
		"X-One: a\nx-one: b , c\nX-Two: 1\nX-ONE: d",
		"X-Empty:\nX-Blank: \nX-Tab:\t1",
		"Cookie: a=1; b=2\nCookie: c=3",
		"Authorization: Bearer a.b-c_d~e+f/g==",
		"X-Umlaut: \xc3\xa9\nX-Latin: \xe9\xff",
		"X_Under_Score: 1\nx.dot: 2\nx!#$%&'*+^`|~9: 3",
		"If-None-Match: W/\"3\"\nIf-Modified-Since: Tue, 02 Jan 2024 03:04:05 GMT",
		"Range: bytes=0-10,20-30\nIf-Range: \"x\"",
		"X-Real-IP: 10.1.1.1\nX-Forwarded-Prefix: /a\nX-Forwarded-Port: 1\nVia: 1.1 edge\nTraceparent: 00-a-b-01",
		"Prefer: respond-async\nPrefer: handling=lenient",
		"Accept: application/fhir+json\nAccept: */*;q=0.1",
		"X-Long: " + strings.Repeat("l", 20<<10),
		"X-Many: " + strings.Repeat("1\nX-Many: ", 60) + "1",
		"Content-Type: text/plain",
		"Max-Forwards: 3\nPragma: no-cache\nDate: Tue, 02 Jan 2024 03:04:05 GMT\nUpgrade-Insecure-Requests: 1",
	} {
		name, _, _ := strings.Cut(fields, ":")
		table = append(table, sent{name: "fields " + name, request: "GET /fhir/Patient/1 HTTP/1.1\nHost: h\n" + fields + "\n\n"})
	}
	return table
}

// targetRequests are those whose target is odd.
func targetRequests() []sent {
	var table []sent
	for _, target := range []string{
		"/", "/fhir", "/fhir/", "//Patient", "//Patient/a|b?c|d", "/fhir//Patient//1", "/fhir/Patient/a%2Fb", "/fhir/Patient/a%2fb", "/fhir/../x", "/fhir/Patient/../metadata", "/fhir/%2e%2e/x",
		"/fhir/./Patient", "/fhir/Patient/a|b", `/fhir/Patient/"q"^{x}` + "`", "/fhir/Patient;v=1/x", "/fhir/Patient/%41%7e", "/fhir/Patient/\xc3\xa9", "/fhir/Patient/\xff",
		"/fhir/Patient/%C3%A9", "/fhir/Patient/1/$everything", "/fhir/Patient/$validate", "/fhir/Patient/%24validate", "/fhir/Patient/(a)[b]<c>\\d", "/fhir/a:b@c,d=e+f&g!h*i'j",
		"/fhir/Patient?a=1;b=2&c=%zz", "/fhir/Patient?", "/fhir/Patient?+", "/fhir/Patient?a=b+c%20d&&a=b&=&a=b", "/fhir/Patient?a=?b", "/fhir/Patient?a=/../b//c",
		"/fhir/Patient?name=\xc3\xa9|x", "/fhir/Patient?_lastUpdated=ge2024-01-01T00:00:00%2B01:00", "/fhir?_getpages=5b1&_format=json", "/fhir/a%20b%0d%0a",
		"/fhir/Patient?" + strings.Repeat("a=b&", 2000),
	} {
		table = append(table, sent{name: fmt.Sprintf("target %.40q", target), request: "GET " + target + " HTTP/1.1\nHost: h\n\n"})
	}
	return append(table, sent{name: "target with a nul", nginx: ownErrors, request: "GET /fhir/%00 HTTP/1.1\nHost: h\n\n"})
}

// inChunks is a body in chunks of a size, without the last one.
func inChunks(body string, size int) string {
	var b strings.Builder
	for len(body) > 0 {
		n := min(size, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	return b.String()
}

// parsed is a message of a table as it has to arrive.
func (s *script) parsed(text, method string) *message {
	m, err := readMessage(bufio.NewReader(strings.NewReader(wire(text))), method)
	s.check(err, "read the table")
	return m
}

func requestEntries() []entry {
	var entries []entry
	for _, row := range requests() {
		entries = append(entries, entry{"request/" + row.name, row.nginx, func(s *script) {
			if row.arrives == "" {
				row.arrives = row.request
			}
			method, _, _ := strings.Cut(row.request, " ")
			s.client.sendLater(row.request)
			request := s.next().rest()
			want := s.parsed(row.arrives, "")
			if len(want.values("X-Forwarded-For")) > 0 && len(request.head.values("X-Forwarded-For")) != 1 {
				s.failf("X-Forwarded-For: got %q", request.head.values("X-Forwarded-For"))
			}
			if wrong := s.difference(request.head, want); wrong != "" {
				s.failf("the request arrives in another form:\n%s", wrong)
			}
			request.reply("HTTP/1.1 201 Created\nContent-Length: 0\nX-Reply: 1\n\n")
			if got := s.client.answer(method); got.status() != 201 || len(got.values("X-Reply")) != 1 {
				s.failf("the answer begins with %q", got.first)
			}
		}})
	}
	return entries
}
