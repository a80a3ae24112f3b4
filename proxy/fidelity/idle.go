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

// standstills is how often in a row a machine may stand still for so long that a connection is no longer used for what may be sent
// only once.
const standstills = 10

// second sends a request over a connection that was kept, and lets the server close it without a word.
func (s *script) second(method string) {
	request := s.kept()
	for range standstills {
		request.end(true)
		if request = s.ask(method); request.nth > 1 {
			request.end(false)
			return
		}
		request.write(wire("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"))
		s.client.answer(method)
	}
	s.failf("the connection is not used again")
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
