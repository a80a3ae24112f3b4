package fidelity

// kept makes the proxy keep a connection to the server, and returns the request that was sent over it.
func (s *script) kept() *request {
	request := s.ask("GET")
	request.write(wire("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"))
	if got := s.client.answer("GET"); got.body != "ok" {
		s.failf("body: got %q", got.body)
	}
	return request
}

// closedWhileIdle is a connection that the server has closed before the next request comes.
func closedWhileIdle(s *script) {
	s.kept().abort()
	request := s.ask("POST")
	if request.nth != 1 {
		s.failf("the request comes over a connection that was closed")
	}
	request.reply("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
	if got := s.client.answer("POST"); got.status() != 200 {
		s.failf("got %q, want 200", got.first)
	}
}

// second sends a request over a connection that was kept, and lets the server close it without a word.
func (s *script) second(method string) {
	s.kept().end(true)
	request := s.ask(method)
	if request.nth == 1 {
		s.failf("the connection is not used again")
	}
	request.end(false)
}

// deadGet has to be sent once more: the connection may have been closed before the request was there.
func deadGet(s *script) {
	s.second("GET")
	s.next().reply("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
	if got := s.client.answer("GET"); got.status() != 200 || got.body != "ok" {
		s.failf("got %q %q", got.first, got.body)
	}
}

// deadPost must not: the server may have done what was asked.
func deadPost(s *script) {
	s.second("POST")
	if got := s.client.answer("POST"); got.status() != 502 {
		s.failf("got %q, want 502", got.first)
	}
}
