package fidelity

import (
	"io"
	"strings"
)

// broken is an answer that is none: the client gets a 502 or one that is broken off. Some may be repaired; then repaired is how
// the answer arrives. Behind it the server's connection must not be used again, or the rest of one answer becomes part of the next.
type broken struct{ name, nginx, method, answer, repaired string }

// reasons why nginx differs.
const (
	lastLength = "it takes the last length"
	noLength   = "it takes a length that is no number for none, and reads until the server closes"
	anyCoding  = "it takes every coding for chunks"
	loneName   = "it takes a lone name for a field without a value, since ignore_invalid_headers is off"
	oldHTTP    = "it takes what is no status line for an answer of HTTP/0.9"
	anySwitch  = "it passes the switch on"
)

func brokenAnswers() []broken {
	const ok = "HTTP/1.1 200 OK\n"
	return []broken{
		{name: "two lengths", nginx: lastLength, answer: ok + "Content-Length: 2\nContent-Length: 3\n\nokx"},
		{name: "a list of lengths", nginx: noLength, answer: ok + "Content-Length: 2, 3\n\nokx"},
		{name: "the same length twice", answer: ok + "Content-Length: 2\nContent-Length: 2\n\nok", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "negative length", nginx: noLength, answer: ok + "Content-Length: -1\n\nok"},
		{name: "length with a sign", nginx: noLength, answer: ok + "Content-Length: +2\n\nok"},
		{name: "length that is no number", nginx: noLength, answer: ok + "Content-Length: 2x\n\nok"},
		{
			name:   "length and chunks", // RFC 9112, section 6.3: the length goes
			answer: ok + "Content-Length: 3\nTransfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n", repaired: ok + "Transfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n",
		},
		{name: "another coding", nginx: anyCoding, answer: ok + "Transfer-Encoding: gzip, chunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "chunked twice", nginx: anyCoding, answer: ok + "Transfer-Encoding: chunked, chunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "unknown coding", nginx: anyCoding, answer: ok + "Transfer-Encoding: xchunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "size that is no number", answer: ok + "Transfer-Encoding: chunked\n\nzz\r\nok\r\n0\r\n\r\n"},
		{name: "size too large", answer: ok + "Transfer-Encoding: chunked\n\n10000000000000002\r\nok\r\n0\r\n\r\n"},
		{name: "negative size", answer: ok + "Transfer-Encoding: chunked\n\n-2\r\nok\r\n0\r\n\r\n"},
		{name: "chunk longer than its size", answer: ok + "Transfer-Encoding: chunked\n\n2\r\nokx\r\n0\r\n\r\n"},
		{
			name:   "folded field", // RFC 9112, section 5.2: the fold becomes a blank
			answer: ok + "X-Folded: a\n b\nContent-Length: 2\n\nok", repaired: ok + "X-Folded: a b\nContent-Length: 2\n\nok",
		},
		{name: "blank before the colon", answer: ok + "X-Blank : a\nContent-Length: 2\n\nok", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "length with a blank before the colon", answer: ok + "Content-Length : 3\nContent-Length: 2\n\nok", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "field without a colon", nginx: loneName, answer: ok + "X-Alone\nContent-Length: 2\n\nok", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "field without a name", answer: ok + ": a\nContent-Length: 2\n\nok", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "nul in a field", answer: ok + "X-Nul: a\x00b\nContent-Length: 2\n\nok"},
		{name: "carriage return in a field", answer: ok + "X-Injected: a\rX-More: b\nContent-Length: 2\n\nok"},
		{name: "no HTTP", nginx: oldHTTP, answer: "SSH-2.0-OpenSSH_9.2\r\n\n"},
		{name: "no status", nginx: oldHTTP, answer: "HTTP/1.1 abc OK\nContent-Length: 2\n\nok"},
		{name: "short status", nginx: oldHTTP, answer: "HTTP/1.1 20 OK\nContent-Length: 2\n\nok"},
		{name: "switch that nobody asked for", nginx: anySwitch, answer: "HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: x\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"},
		{name: "more than the length", answer: ok + "Content-Length: 2\n\nokHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", repaired: ok + "Content-Length: 2\n\nok"},
		{name: "more than the chunks", answer: ok + "Transfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", repaired: ok + "Transfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "body behind a head", method: "HEAD", answer: ok + "Content-Length: 2\n\nno", repaired: ok + "Content-Length: 2\n\n"},
		{name: "body behind 204", answer: "HTTP/1.1 204 No Content\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", repaired: "HTTP/1.1 204 No Content\n\n"},
		{name: "body behind 304", answer: "HTTP/1.1 304 Not Modified\nContent-Length: 2\n\nno", repaired: "HTTP/1.1 304 Not Modified\nContent-Length: 2\n\n"},
		{name: "interim answers without end", answer: strings.Repeat("HTTP/1.1 102 Processing\nX-Padding: "+strings.Repeat("x", 1000)+"\n\n", 1100), nginx: "it goes on waiting for the final answer"},
		{name: "head without end", answer: ok + strings.Repeat("X-Field: "+strings.Repeat("x", 1000)+"\n", 2000)},
	}
}

func brokenEntries() []entry {
	var entries []entry
	for _, row := range brokenAnswers() {
		entries = append(entries, entry{"broken answer/" + row.name, row.nginx, func(s *script) {
			if row.method == "" {
				row.method = "GET"
			}
			s.ask(row.method).replyLater(row.answer)
			s.checkNotPassedOn(row)
			s.client.close()
			s.connect() // and the next request gets its own answer
		}})
	}
	for _, row := range brokenRequests() {
		entries = append(entries, entry{"broken request/" + row.name, row.nginx, func(s *script) {
			s.client.sendLater(row.request)
			s.checkRefused(row)
			s.client.close()
			s.connect()
		}})
	}
	return entries
}

// checkNotPassedOn reads what becomes of a broken answer.
func (s *script) checkNotPassedOn(row broken) {
	head, err := readHead(s.client.reader)
	for err == nil && head.status() > 100 && head.status() < 200 && head.status() != 101 {
		head, err = readHead(s.client.reader)
	}
	if isTimeout(err) {
		s.failf("the client waits for ever")
	}
	if err != nil {
		return // broken off
	}
	body, err := head.bodyOf(s.client.reader, row.method)
	s.check(err, "body of the answer")
	text, err := io.ReadAll(body)
	if isTimeout(err) {
		s.failf("the client waits for ever for the rest")
	}
	head.body = string(text)
	if err != nil || head.status() == 502 {
		return
	}
	if row.repaired == "" {
		s.failf("a broken answer is passed on: %q %q %q", head.first, head.fields, head.body)
	}
	if wrong := s.difference(head, s.parsed(row.repaired, row.method)); wrong != "" {
		s.failf("a broken answer arrives in another form:\n%s", wrong)
	}
}

// brokenRequests are refused with a status of 400 and more, or arrive in the repaired form.
func brokenRequests() []sent {
	const post = "POST /fhir HTTP/1.1\nHost: h\n"
	const get = "GET /fhir HTTP/1.1\nHost: h\n"
	return []sent{
		{name: "two lengths", request: post + "Content-Length: 2\nContent-Length: 3\n\nokx"},
		{name: "the same length twice", request: post + "Content-Length: 2\nContent-Length: 2\n\nok", arrives: post + "Content-Length: 2\n\nok"},
		{name: "negative length", request: post + "Content-Length: -2\n\nok"},
		{name: "length with a sign", request: post + "Content-Length: +2\n\nok"},
		{
			name:    "length and chunks",
			request: post + "Content-Length: 3\nTransfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n", arrives: post + "Transfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n",
		},
		{name: "another coding", request: post + "Transfer-Encoding: gzip, chunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "unknown coding", request: post + "Transfer-Encoding: xchunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "coding with a blank before the colon", request: post + "Transfer-Encoding : chunked\nContent-Length: 2\n\nok"},
		{name: "folded field", request: get + "X-Folded: a\n b\n\n", arrives: get + "X-Folded: a b\n\n"},
		{name: "folded coding", request: post + "Transfer-Encoding:\n chunked\n\n2\r\nok\r\n0\r\n\r\n", arrives: post + "Transfer-Encoding: chunked\n\n2\r\nok\r\n0\r\n\r\n"},
		{name: "blank in a name", request: get + "X Blank: a\n\n"},
		{name: "field without a colon", nginx: loneName, request: get + "X-Alone\n\n"},
		{name: "nul in a field", request: get + "X-Nul: a\x00b\n\n"},
		{name: "carriage return in a field", request: get + "X-Injected: a\rX-More: b\n\n"},
		{name: "two hosts", request: get + "Host: other\n\n"},
		{name: "no host", request: "GET /fhir HTTP/1.1\n\n"},
		{name: "blank in the target", request: "GET /fhir/a b HTTP/1.1\nHost: h\n\n"},
		{name: "control byte in the target", request: "GET /fhir/a\x01b HTTP/1.1\nHost: h\n\n"},
		{name: "no target", request: "GET HTTP/1.1\nHost: h\n\n"},
		{name: "odd method", request: "G(T /fhir HTTP/1.1\nHost: h\n\n"},
	}
}

// checkRefused fails when a broken request is passed on.
func (s *script) checkRefused(row sent) {
	answered := make(chan *message, 1)
	client := s.client
	go func() {
		head, _ := readHead(client.reader) // nil where the connection is closed
		answered <- head
	}()
	select {
	case request := <-s.server.arrived:
		defer request.end(false)
		request.script = s
		if row.arrives == "" {
			request.write(wire("HTTP/1.1 200 OK\nConnection: close\nContent-Length: 0\n\n")) // or nginx would send it again, into the next case
			<-answered
			s.failf("a broken request is passed on: %q %q", request.head.first, request.head.fields)
		}
		if wrong := s.difference(request.rest().head, s.parsed(row.arrives, "")); wrong != "" {
			s.failf("a broken request arrives in another form:\n%s", wrong)
		}
		request.reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
		<-answered
	case head := <-answered:
		if head != nil && head.status() < 400 {
			s.failf("a broken request is answered by %q", head.first)
		}
	}
}
