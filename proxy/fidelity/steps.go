package fidelity

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// stepEntries are the cases in which it matters who speaks when.
func stepEntries() []entry {
	entries := []entry{
		{"steps/server-sent events", "", events},
		{"steps/flush within a known length", "", flushes("Content-Length: 6\n", "%s")},
		{"steps/flush before the end of the connection", "", flushes("Connection: close\n", "%s")},
		{"steps/flush of the head", "", flushedHead},
		{"steps/pieces of a chunked request", "", pieces("Transfer-Encoding: chunked\n", "3\r\nabc\r\n", "3\r\ndef\r\n", "0\r\n\r\n")},
		{"steps/pieces of a long request", "", longPieces},
		{"steps/interim answers", noHints, interim},
		{"steps/expect, accepted", ownExpect, expectAccepted},
		{"steps/expect, answered at once", ownExpect, expectAtOnce},
		{"steps/early answer to an upload", "", earlyAnswer("Content-Length: 1000000\n", strings.Repeat("x", 64<<10))},
		{"steps/early answer to a chunked upload", "", earlyAnswer("Transfer-Encoding: chunked\n", "10000\r\n"+strings.Repeat("x", 64<<10)+"\r\n")},
		{"steps/upgrade", "", upgrade},
		{"steps/upgrade, half closed by the client", "it closes both directions", halfClosedByClient},
		{"steps/upgrade, half closed by the server", "it closes both directions", halfClosedByServer},
		{"steps/upgrade, refused", "", upgradeRefused},
		{"steps/upgrade, server leaves", "", upgradeServerLeaves},
		{"steps/pipelined", "", pipelined},
		{"steps/slow head", "", slowHead},
		{"steps/slow request", "", slowRequest},
		{"steps/HTTP/1.0 and chunks", "", oldClient},
		{"steps/HTTP/1.0 and interim answers", "it takes or passes on what an old client does not know", oldClientWaits("")},
		{"steps/HTTP/1.0 and interim answers, with the wish for an upgrade", "the same", oldClientWaits("Connection: Upgrade\nUpgrade: websocket\n")},
		{"steps/status below 100", "it passes every number on", oddStatus("")},
		{"steps/status below 100, with the wish for an upgrade", "the same", oddStatus("Connection: Upgrade\nUpgrade: websocket\n")},
		{"steps/client closes", "", clientCloses},
		{"steps/server closes", "", serverCloses},
		{"steps/closed while idle", "", closedWhileIdle},
		{"steps/dead connection, GET", "", deadGet},
		{"steps/dead connection, POST", "", deadPost},
		{"steps/server leaves without an answer", "", noAnswer},
	}
	for name, head := range map[string]string{"length": "Content-Length: 6\n\nabc", "chunks": "Transfer-Encoding: chunked\n\n3\r\nabc\r\n", "open chunk": "Transfer-Encoding: chunked\n\n6\r\nabc"} {
		entries = append(entries, entry{"steps/server leaves in the answer, " + name, "", serverLeaves(head)}, entry{"steps/client leaves in the answer, " + name, "", clientLeaves(head, name == "open chunk")})
	}
	for name, head := range map[string]string{
		"nothing": "\n", "short": "Content-Length: 6\n\n", "length": "Content-Length: 1000000\n\nabc", "chunks": "Transfer-Encoding: chunked\n\n3\r\nabc\r\n", "open chunk": "Transfer-Encoding: chunked\n\n6\r\nabc",
	} {
		entries = append(entries, entry{"steps/client leaves in the request, " + name, "", clientLeavesEarly(name, head)})
	}
	return entries
}

// events sends events one by one: each has to arrive before the next is sent.
func events(s *script) {
	request := s.ask("GET")
	request.write(wire("HTTP/1.1 200 OK\nContent-Type: text/event-stream\nTransfer-Encoding: chunked\n\n"))
	head := s.client.final()
	body, err := head.bodyOf(s.client.reader, "GET")
	s.check(err, "body of the events")
	for i := range 5 {
		event := fmt.Sprintf("data: %d\n\n", i)
		request.write(fmt.Sprintf("%x\r\n%s\r\n", len(event), event))
		s.expect(body, event, "event at the client")
	}
	request.write("0\r\n\r\n").end(true)
	_, err = io.Copy(io.Discard, body)
	s.check(err, "end of the events")
}

// flushes sends an answer in two pieces: the first has to arrive before the second is sent.
func flushes(field, form string) func(*script) {
	return func(s *script) {
		request := s.ask("GET")
		request.write(wire("HTTP/1.1 200 OK\n"+field+"\n") + fmt.Sprintf(form, "abc"))
		head := s.client.final()
		body, err := head.bodyOf(s.client.reader, "GET")
		s.check(err, "body of the answer")
		s.expect(body, "abc", "first piece")
		request.write(fmt.Sprintf(form, "def")).end(!strings.Contains(field, "close"))
		rest, err := io.ReadAll(body)
		if string(rest) != "def" || err != nil {
			s.failf("second piece: got %q, %v", rest, err)
		}
	}
}

// flushedHead sends the head of an answer alone.
func flushedHead(s *script) {
	request := s.ask("GET")
	request.write(wire("HTTP/1.1 200 OK\nContent-Length: 3\n\n"))
	body, err := s.client.final().bodyOf(s.client.reader, "GET")
	s.check(err, "body of the answer")
	request.write("abc").end(true)
	s.expect(body, "abc", "body")
}

// pieces sends a request piece by piece: each has to arrive before the next is sent.
func pieces(field string, parts ...string) func(*script) {
	return func(s *script) {
		s.client.send("POST /fhir HTTP/1.1\nHost: h\n" + field + "\n" + parts[0])
		request := s.next()
		body, err := request.head.bodyOf(request.reader, "")
		s.check(err, "body of the request")
		s.expect(body, "abc", "first piece")
		s.client.sendRaw(parts[1])
		s.expect(body, "def", "second piece")
		s.client.sendRaw(parts[2])
		rest, err := io.ReadAll(body)
		if len(rest) > 0 || err != nil {
			s.failf("end of the request: %q, %v", rest, err)
		}
		request.reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
		s.client.answer("POST")
	}
}

// longPieces does it with a body of known length, large enough not to be read whole at first.
func longPieces(s *script) {
	piece := strings.Repeat("0123456789", 10_000)
	s.client.send(fmt.Sprintf("PUT /fhir/Binary/1 HTTP/1.1\nHost: h\nContent-Length: %d\n\n%s", 2*len(piece), piece))
	request := s.next()
	if got := request.head.values("Content-Length"); len(got) != 1 || got[0] != fmt.Sprint(2*len(piece)) {
		s.failf("Content-Length: got %q", got)
	}
	s.expect(request.reader, piece, "first piece")
	s.client.sendRaw(piece)
	s.expect(request.reader, piece, "second piece")
	request.reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
	s.client.answer("PUT")
}

// interim sends interim answers; each has to arrive before the next.
func interim(s *script) {
	request := s.ask("GET")
	for _, text := range []string{"HTTP/1.1 102 Processing\n\n", "HTTP/1.1 103 Early Hints\nLink: <a>; rel=preload\nLink: <b>\n\n", "HTTP/1.1 103 Early Hints\nLink: <c>\n\n"} {
		request.write(wire(text))
		if wrong := s.difference(s.client.head(), s.parsed(text, "GET")); wrong != "" {
			s.failf("an interim answer arrives in another form:\n%s", wrong)
		}
	}
	const final = "HTTP/1.1 200 OK\nX-Final: 1\nContent-Length: 2\n\nok"
	request.reply(final)
	if wrong := s.difference(s.client.answer("GET"), s.parsed(final, "GET")); wrong != "" {
		s.failf("the final answer arrives in another form:\n%s", wrong)
	}
}

const expecting = "POST /fhir HTTP/1.1\nHost: h\nExpect: 100-continue\nContent-Length: 3\n\n"

// expectAccepted is a request whose client waits until the server wants the body.
func expectAccepted(s *script) {
	s.client.send(expecting)
	request := s.next()
	if wrong := s.difference(&message{first: request.head.first, fields: request.head.fields}, s.parsedHead(expecting)); wrong != "" {
		s.failf("the request arrives in another form:\n%s", wrong)
	}
	request.write(wire("HTTP/1.1 100 Continue\n\nHTTP/1.1 100 Continue\n\n")) // once is enough for the client
	if got := s.client.head(); got.status() != 100 {
		s.failf("got %q, want 100", got.first)
	}
	s.client.sendRaw("abc")
	s.expect(request.reader, "abc", "body")
	request.reply("HTTP/1.1 201 Created\nContent-Length: 0\n\n")
	if got := s.client.head(); got.status() != 201 {
		s.failf("got %q, want 201", got.first)
	}
}

// expectAtOnce is one that is answered before the body: the client must not be told to go on.
func expectAtOnce(s *script) {
	for _, answer := range []string{"417 Expectation Failed", "401 Unauthorized", "413 Content Too Large"} {
		s.connect()
		s.client.send(expecting)
		s.next().write(wire("HTTP/1.1 " + answer + "\nConnection: close\nContent-Length: 2\n\nno")).end(false)
		got := s.client.head()
		if !strings.HasPrefix(got.first, "HTTP/1.1 "+answer[:3]) {
			s.failf("got %q, want %q", got.first, answer)
		}
		s.expect(s.client.reader, "no", "body of the answer")
	}
	s.connect()
}

// parsedHead is the head of a message of a table.
func (s *script) parsedHead(text string) *message {
	head, _, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	return &message{first: lines[0], fields: lines[1:]}
}

// earlyAnswer is one that comes in the midst of the request: the client has to get it although it goes on sending.
func earlyAnswer(field, part string) func(*script) {
	return func(s *script) {
		s.client.send("POST /fhir HTTP/1.1\nHost: h\n" + field + "\n" + part)
		request := s.next()
		body, err := request.head.bodyOf(request.reader, "")
		s.check(err, "body of the request")
		s.expect(body, strings.Repeat("x", 64<<10), "first piece")
		request.write(wire("HTTP/1.1 413 Content Too Large\nConnection: close\nContent-Length: 9\n\ntoo large"))
		got := s.client.answer("POST")
		if got.status() != 413 || got.body != "too large" {
			s.failf("got %q %q", got.first, got.body)
		}
		s.client.close()
		request.checkGone()
		s.connect()
	}
}

// slowHead sends an answer byte by byte.
func slowHead(s *script) {
	request := s.ask("GET")
	for _, b := range []byte(wire("HTTP/1.1 200 OK\nX-Slow: 1\nContent-Length: 2\n\nok")) {
		request.write(string(b))
	}
	request.end(true)
	if got := s.client.answer("GET"); got.body != "ok" || len(got.values("X-Slow")) != 1 {
		s.failf("got %q", got)
	}
}

// slowRequest sends a request byte by byte.
func slowRequest(s *script) {
	for _, b := range []byte(wire("POST /fhir HTTP/1.1\nHost: h\nContent-Length: 2\n\nok")) {
		s.client.sendRaw(string(b))
	}
	request := s.next().rest()
	if request.head.body != "ok" {
		s.failf("body: got %q", request.head.body)
	}
	request.reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
	s.client.answer("POST")
}

// pipelined sends several requests at once.
func pipelined(s *script) {
	var all strings.Builder
	for i := range 5 {
		fmt.Fprintf(&all, "POST /fhir/%d HTTP/1.1\nHost: h\nContent-Length: 1\n\n%d", i, i)
	}
	s.client.sendRaw(strings.ReplaceAll(all.String(), "\n", "\r\n"))
	for i := range 5 {
		request := s.next().rest()
		if want := fmt.Sprintf("POST /fhir/%d HTTP/1.1", i); request.head.first != want || request.head.body != fmt.Sprint(i) {
			s.failf("request %d: got %q %q", i, request.head.first, request.head.body)
		}
		request.reply(fmt.Sprintf("HTTP/1.1 200 OK\nContent-Length: 1\n\n%d", i))
		if got := s.client.answer("POST"); got.body != fmt.Sprint(i) {
			s.failf("answer %d: got %q", i, got.body)
		}
	}
}

// oldClient knows no chunks.
func oldClient(s *script) {
	s.client.send("GET /fhir HTTP/1.0\nHost: h\n\n")
	s.next().reply("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n0\r\n\r\n")
	got := s.client.answer("GET")
	if got.body != "abc" || len(got.values("Transfer-Encoding")) > 0 {
		s.failf("got %q %q", got.fields, got.body)
	}
}

// oldClientWaits takes the first answer for the final one.
func oldClientWaits(fields string) func(*script) {
	return func(s *script) {
		s.client.send("GET /fhir HTTP/1.0\nHost: h\n" + fields + "\n")
		s.next().reply("HTTP/1.1 103 Early Hints\nLink: <a>\n\nHTTP/1.1 200 OK\nContent-Length: 3\n\nabc")
		if got := s.client.head(); got.status() != 200 || len(got.values("Link")) > 0 {
			s.failf("the first answer is %q %q", got.first, got.fields)
		}
		s.expect(s.client.reader, "abc", "body")
	}
}

// oddStatus is an answer whose status no client could be told.
func oddStatus(fields string) func(*script) {
	return func(s *script) {
		s.client.send("GET /fhir HTTP/1.1\nHost: h\n" + fields + "\n")
		s.next().reply("HTTP/1.1 099 Odd\nContent-Length: 2\n\nok")
		if got := s.client.answer("GET"); got.status() != 502 {
			s.failf("got %q, want 502", got.first)
		}
	}
}

// clientCloses is a request that ends its connection.
func clientCloses(s *script) {
	s.client.send("GET /fhir HTTP/1.1\nHost: h\nConnection: close\n\n")
	s.next().reply("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
	s.client.answer("GET")
	if rest, err := io.ReadAll(s.client.reader); len(rest) > 0 || err != nil {
		s.failf("behind the answer: %q, %v", rest, err)
	}
	s.client.closing = true
}

// serverCloses is an answer whose end is that of the connection.
func serverCloses(s *script) {
	s.ask("GET").write(wire("HTTP/1.1 200 OK\nContent-Type: a/b\n\nabc")).end(false)
	if got := s.client.answer("GET"); got.body != "abc" {
		s.failf("body: got %q", got.body)
	}
}

// noAnswer is what a client gets where none has come.
func noAnswer(s *script) {
	request := s.ask("POST")
	request.end(false)
	if got := s.client.answer("POST"); got.status() != 502 {
		s.failf("got %q, want 502", got.first)
	}
}

// serverLeaves breaks an answer off: what came of it arrives.
func serverLeaves(head string) func(*script) {
	return func(s *script) {
		s.ask("GET").write(wire("HTTP/1.1 200 OK\n" + head)).end(false)
		got, err := readMessage(s.client.reader, "GET")
		if err == nil && got.status() != 502 {
			s.failf("half an answer looks whole: %q %q", got.first, got.body)
		}
		if got == nil || got.body != "abc" {
			s.failf("the half that came is lost: %v, %v", got, err)
		}
		s.client.close()
		s.connect()
	}
}

// clientLeaves goes in the midst of an answer.
func clientLeaves(head string, open bool) func(*script) {
	return func(s *script) {
		request := s.ask("GET")
		request.write(wire("HTTP/1.1 200 OK\n" + head))
		if !open { // net/http gives a chunk on when it is whole
			s.client.final()
		}
		s.client.close()
		request.checkGone()
		s.connect()
	}
}

// clientLeavesEarly goes in the midst of a request, or behind it.
func clientLeavesEarly(name, head string) func(*script) {
	return func(s *script) {
		s.client.send("POST /fhir HTTP/1.1\nHost: h\n" + head)
		if name == "short" { // the proxy may wait for the rest before it asks the server
			s.client.close()
			s.connect()
			s.client.send("GET /fhir/behind HTTP/1.1\nHost: h\n\n")
			request := s.next()
			if request.head.first != "GET /fhir/behind HTTP/1.1" {
				request.checkNotWhole()
				request = s.next()
			}
			request.reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
			s.client.answer("GET")
			return
		}
		request := s.next()
		s.client.close()
		if name == "nothing" {
			request.checkGone()
		} else {
			request.checkNotWhole()
		}
		s.connect()
	}
}

// checkNotWhole fails when a request that was broken off looks whole.
func (r *request) checkNotWhole() {
	body, err := r.head.bodyOf(r.reader, "")
	r.script.check(err, "body of the request")
	if _, err := io.ReadAll(body); err == nil {
		r.script.failf("half a request looks whole")
	} else if isTimeout(err) {
		r.script.failf("the server does not see that the client has left")
	}
	r.end(false)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
