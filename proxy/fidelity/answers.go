package fidelity

import (
	"fmt"
	"strings"
)

// answered is an answer to a request by a method, and how it has to arrive at the client; empty means as it was sent.
type answered struct{ name, nginx, method, answer, arrives string }

// reasons why nginx differs.
const (
	noHints         = "its release takes an interim answer for the final one"
	noAnswerTrailer = "its release drops the trailer of an answer"
)

func answers() []answered {
	const date = "Date: Tue, 02 Jan 2024 03:04:05 GMT\n"
	const plain = "HTTP/1.1 200 OK\n" + date + "Content-Type: a/b\n"
	return []answered{
		{name: "plain", answer: plain + "Content-Length: 2\n\nok"},
		{name: "no content type", answer: "HTTP/1.1 200 OK\nContent-Length: 6\n\n<html>"},
		{name: "empty content type", nginx: "it drops an empty Content-Type", answer: "HTTP/1.1 200 OK\nContent-Type:\nContent-Length: 6\n\n<html>"},
		{name: "length 0", answer: plain + "Content-Length: 0\n\n"},
		{name: "HTTP/1.0", answer: "HTTP/1.0 200 OK\nContent-Length: 2\n\nok", arrives: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"},
		{
			name:   "odd fields",
			answer: plain + "Server: Jetty(9.4)\nSet-Cookie: a=1\nSet-Cookie: b=2; Path=/\nx-request-id: 7\nVary: Origin\nVary: Accept\nX-Empty:\nX-Latin: \xe9\nVia: 1.0 x\nAge: 3\nContent-Length: 0\n\n",
		},
		{name: "long field", answer: plain + "X-Long: " + strings.Repeat("l", 20<<10) + "\nContent-Length: 0\n\n"},
		{name: "cors", answer: plain + "Access-Control-Allow-Origin: *\nAccess-Control-Expose-Headers: Content-Location\nContent-Length: 0\n\n"},
		{name: "created", method: "POST", answer: "HTTP/1.1 201 Created\nLocation: http://inside/fhir/Patient/1/_history/1\nETag: W/\"1\"\nLast-Modified: Tue, 02 Jan 2024 03:04:05 GMT\nContent-Length: 0\n\n"},
		{name: "accepted", method: "POST", answer: "HTTP/1.1 202 Accepted\nContent-Location: http://inside/x\nRetry-After: 120\nContent-Length: 0\n\n"},
		{name: "redirect", answer: "HTTP/1.1 302 Found\nLocation: /login\nRefresh: 3; url=/login\nContent-Length: 0\n\n"},
		{name: "no content", method: "DELETE", answer: "HTTP/1.1 204 No Content\n" + date + "\n"},
		{name: "not modified", answer: "HTTP/1.1 304 Not Modified\n" + date + "ETag: W/\"3\"\nCache-Control: no-cache\n\n"},
		{name: "not modified with a length", answer: "HTTP/1.1 304 Not Modified\n" + date + "ETag: W/\"3\"\nContent-Length: 12345\n\n"},
		{name: "not modified with a type", answer: "HTTP/1.1 304 Not Modified\nContent-Type: a/b\nETag: W/\"3\"\n\n"},
		{name: "partial", answer: "HTTP/1.1 206 Partial Content\nContent-Type: a/b\nAccept-Ranges: bytes\nContent-Range: bytes 0-1/10\nContent-Length: 2\n\nab"},
		{name: "several parts", answer: "HTTP/1.1 206 Partial Content\nContent-Type: multipart/byteranges; boundary=x\nContent-Length: 14\n\n--x\r\n\r\na\r\n--x--"},
		{name: "range not satisfiable", answer: "HTTP/1.1 416 Range Not Satisfiable\nContent-Range: bytes */10\nContent-Length: 0\n\n"},
		{name: "challenges", answer: "HTTP/1.1 401 Unauthorized\nContent-Type: a/b\nWWW-Authenticate: Basic\nWWW-Authenticate: Bearer\nContent-Length: 1\n\nx"},
		{name: "error page", answer: "HTTP/1.1 500 Oops\nContent-Type: text/html\nContent-Length: 5\n\n<p>x\n"},
		{name: "unavailable", answer: "HTTP/1.1 503 Service Unavailable\nRetry-After: 7\nContent-Length: 0\n\n"},
		{name: "own status", answer: "HTTP/1.1 599 Own\nContent-Length: 0\n\n"},
		{name: "status without words", answer: "HTTP/1.1 200 \nContent-Length: 2\n\nok"},
		{name: "head with a length", method: "HEAD", answer: plain + "Content-Length: 12345\nETag: \"x\"\n\n"},
		{name: "head with length 0", method: "HEAD", answer: plain + "Content-Length: 0\n\n"},
		{name: "head without a length", method: "HEAD", answer: plain + "\n"},
		{name: "head of a chunked answer", method: "HEAD", answer: plain + "Transfer-Encoding: chunked\n\n", arrives: plain + "\n"},
		{name: "options", method: "OPTIONS", answer: "HTTP/1.1 200 OK\nAllow: GET, POST\nContent-Length: 0\n\n"},
		{name: "gzip", answer: plain + "Content-Encoding: gzip\nContent-Length: 6\n\n\x1f\x8b\x08\x00\x00\x00"},
		{name: "1 MB", answer: fmt.Sprintf("%sContent-Length: %d\n\n%s", plain, len(large), large)},
		{name: "1 MB in chunks", answer: plain + "Transfer-Encoding: chunked\n\n" + inChunks(large, 7001) + "0\r\n\r\n"},
		{name: "chunked", answer: plain + "Transfer-Encoding: chunked\n\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"},
		{name: "chunked in capitals", answer: plain + "Transfer-Encoding: Chunked\n\n3\r\nabc\r\n0\r\n\r\n", arrives: plain + "Transfer-Encoding: chunked\n\n3\r\nabc\r\n0\r\n\r\n"},
		{name: "chunked and empty", answer: plain + "Transfer-Encoding: chunked\n\n0\r\n\r\n"},
		{name: "chunk extensions", answer: plain + "Transfer-Encoding: chunked\n\n3;a=\"b\"\r\nabc\r\n0;c\r\n\r\n"},
		{
			name: "trailers", nginx: noAnswerTrailer,
			answer: plain + "Transfer-Encoding: chunked\nTrailer: X-Sum\n\n3\r\nabc\r\n0\r\nX-Sum: 1.10\r\n\r\n",
		},
		{
			name: "trailers that nobody announced", nginx: noAnswerTrailer,
			answer: plain + "Transfer-Encoding: chunked\n\n3\r\nabc\r\n0\r\nX-Sum: 1.10\r\n\r\n",
		},
		{
			name:   "fields of one hop",
			answer: "HTTP/1.1 200 OK\nKeep-Alive: timeout=5\nX-Kept: 2\nContent-Length: 2\n\nok", arrives: "HTTP/1.1 200 OK\nX-Kept: 2\nContent-Length: 2\n\nok",
		},
		{
			name: "fields that Connection names", nginx: noNamedField,
			answer:  "HTTP/1.1 200 OK\nConnection: X-Hop\nX-Hop: 1\nX-Kept: 2\nContent-Length: 2\n\nok",
			arrives: "HTTP/1.1 200 OK\nX-Kept: 2\nContent-Length: 2\n\nok",
		},
	}
}

func answerEntries() []entry {
	var entries []entry
	for _, row := range answers() {
		entries = append(entries, entry{"answer/" + row.name, row.nginx, func(s *script) {
			if row.method == "" {
				row.method = "GET"
			}
			if row.arrives == "" {
				row.arrives = row.answer
			}
			s.ask(row.method).replyLater(row.answer)
			if wrong := s.difference(s.client.answer(row.method), s.parsed(row.arrives, row.method)); wrong != "" {
				s.failf("the answer arrives in another form:\n%s", wrong)
			}
		}})
	}
	return entries
}

// ask sends a request without a body, and returns it as it arrives.
func (s *script) ask(method string) *request {
	length := ""
	if method == "POST" {
		length = "Content-Length: 0\n"
	}
	s.client.send(method + " /fhir/Patient HTTP/1.1\nHost: h\n" + length + "\n")
	return s.next()
}
