package fidelity

import (
	"io"
)

const (
	upgrading = "GET /fhir/$ws HTTP/1.1\nHost: h\nConnection: keep-alive, Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n\n"
	switching = "HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\n\n"
)

// upgraded opens a tunnel; the first bytes of the server come with its answer.
func (s *script) upgraded() *request {
	s.client.send(upgrading)
	request := s.next()
	if wrong := s.difference(request.head, s.parsed(upgrading, "")); wrong != "" || !request.head.has("Connection", "Upgrade") {
		s.failf("the request arrives in another form:\n%s\n%q", wrong, request.head.fields)
	}
	request.write(wire(switching) + "first")
	head := s.client.final()
	if wrong := s.difference(head, s.parsedHead(switching)); wrong != "" || !head.has("Connection", "Upgrade") {
		s.failf("the answer arrives in another form:\n%s\n%q", wrong, head.fields)
	}
	s.expect(s.client.reader, "first", "first bytes of the server")
	s.client.closing = true
	return request
}

// upgrade speaks in both directions.
func upgrade(s *script) {
	request := s.upgraded()
	for range 3 {
		s.client.sendRaw("\x81\x85ping\x00")
		s.expect(request.reader, "\x81\x85ping\x00", "bytes of the client")
		request.write("\x81\x04pong")
		s.expect(s.client.reader, "\x81\x04pong", "bytes of the server")
	}
	s.client.close()
	request.checkGone()
}

// halfClosedByClient ends one direction; the other goes on.
func halfClosedByClient(s *script) {
	request := s.upgraded()
	s.client.sendRaw("last")
	s.check(s.client.conn.CloseWrite(), "close one direction")
	got, err := io.ReadAll(request.reader)
	if string(got) != "last" || err != nil {
		s.failf("end of the client's bytes: %q, %v", got, err)
	}
	request.write("and more").end(false)
	rest, err := io.ReadAll(s.client.reader)
	if string(rest) != "and more" || err != nil {
		s.failf("end of the server's bytes: %q, %v", rest, err)
	}
}

func halfClosedByServer(s *script) {
	request := s.upgraded()
	request.write("last")
	s.check(request.conn.CloseWrite(), "close one direction")
	got, err := io.ReadAll(s.client.reader)
	if string(got) != "last" || err != nil {
		s.failf("end of the server's bytes: %q, %v", got, err)
	}
	s.client.sendRaw("and more")
	s.client.close()
	rest, err := io.ReadAll(request.reader)
	if string(rest) != "and more" || err != nil {
		s.failf("end of the client's bytes: %q, %v", rest, err)
	}
	request.end(false)
}

// upgradeRefused is answered as if nobody had asked for another protocol.
func upgradeRefused(s *script) {
	s.client.send(upgrading)
	const answer = "HTTP/1.1 426 Upgrade Required\nX-Why: 1\nContent-Length: 2\n\nno"
	s.next().reply(answer)
	if wrong := s.difference(s.client.answer("GET"), s.parsed(answer, "GET")); wrong != "" {
		s.failf("the answer arrives in another form:\n%s", wrong)
	}
}

// upgradeServerLeaves ends the tunnel at the server's side.
func upgradeServerLeaves(s *script) {
	request := s.upgraded()
	request.write("bye").end(false)
	rest, _ := io.ReadAll(s.client.reader) // how it ends is left to the proxy
	if string(rest) != "bye" {
		s.failf("got %q, want %q", rest, "bye")
	}
}
