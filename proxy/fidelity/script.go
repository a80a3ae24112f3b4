package fidelity

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// patience bounds every wait of most scripts.
const patience = 30 * time.Second

// script is one case while it runs: what a client and a server do, step by step, in one goroutine.
type script struct {
	subject  Subject
	address  string // of the proxy
	server   *server
	patience time.Duration
	client   *client // the one that the steps use
	ended    []func()
}

// failure ends a script.
type failure struct{ text string }

func (s *script) failf(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

func (s *script) check(err error, doing string) {
	if err != nil {
		s.failf("%s: %v", doing, err)
	}
}

// run runs a case and returns what was wrong, empty for nothing.
func (s *script) run(play func(*script)) (wrong string) {
	defer func() {
		for _, end := range s.ended {
			end()
		}
		switch ended := recover().(type) {
		case nil:
		case failure:
			wrong = ended.text
		default:
			panic(ended)
		}
	}()
	s.connect()
	play(s)
	s.nothingMore()
	if !s.client.closing {
		s.checkNext()
	}
	return ""
}

// connect makes a new client the one of the script.
func (s *script) connect() *client {
	conn, err := (&net.Dialer{Timeout: s.patience}).DialContext(context.Background(), "tcp", s.address)
	s.check(err, "connect to the proxy")
	s.check(conn.SetDeadline(time.Now().Add(s.patience)), "set a deadline")
	s.ended = append(s.ended, func() { _ = conn.Close() }) // some scripts close it themselves
	s.client = &client{script: s, conn: conn.(*net.TCPConn), reader: bufio.NewReader(conn)}
	return s.client
}

// checkNext sends one more request over the client's connection: it has to be answered by its own answer, or the two ends have
// lost count.
func (s *script) checkNext() {
	s.client.send("GET /fhir/next HTTP/1.1\nHost: h\n\n")
	next := s.next()
	if want := "GET /fhir/next HTTP/1.1"; next.head.first != want {
		s.failf("the next request arrives as %q, want %q", next.head.first, want)
	}
	next.reply("HTTP/1.1 200 OK\nContent-Length: 8\n\nits own.")
	got := s.client.answer("GET")
	if got.status() != 200 || got.body != "its own." {
		s.failf("the next request is answered by %q %q", got.first, got.body)
	}
	s.nothingMore()
}

// next is the next request that arrives at the server, of which the head has been read.
func (s *script) next() *request {
	select {
	case r := <-s.server.arrived:
		s.ended = append(s.ended, func() { r.end(false) })
		r.script = s
		s.check(r.conn.SetDeadline(time.Now().Add(s.patience)), "set a deadline")
		return r
	case <-time.After(s.patience):
		s.failf("no request arrives at the server")
		return nil
	}
}

// nothingMore fails when a request has arrived that no step has taken.
func (s *script) nothingMore() {
	select {
	case r := <-s.server.arrived:
		r.end(false)
		s.failf("a request too many arrives: %q", r.head.first)
	default:
	}
}

// client is a connection to the proxy.
type client struct {
	script *script
	conn   *net.TCPConn
	reader *bufio.Reader
	// closing tells that the connection will not take another request.
	closing bool
}

// send sends a message, see wire.
func (c *client) send(text string) { c.sendRaw(wire(text)) }

func (c *client) sendRaw(bytes string) {
	_, err := io.WriteString(c.conn, bytes)
	c.script.check(err, "send to the proxy")
}

// sendLater sends what may be more than the line holds, beside the next steps.
func (c *client) sendLater(text string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.WriteString(c.conn, wire(text)) // the other end sees what is missing
	}()
	c.script.ended = append(c.script.ended, func() {
		_ = c.conn.Close()
		<-done
	})
}

// head reads the head of an answer, interim ones too.
func (c *client) head() *message {
	head, err := readHead(c.reader)
	c.script.check(err, "read the head of an answer")
	if head.status() == 0 {
		c.script.failf("the answer is none: %q", head.first)
	}
	c.closing = c.closing || head.has("Connection", "close") || strings.HasPrefix(head.first, "HTTP/1.0")
	return head
}

// final reads the head of the answer behind the interim ones.
func (c *client) final() *message {
	for {
		if head := c.head(); head.status() >= 200 || head.status() == 101 {
			return head
		}
	}
}

// answer reads an answer to its end.
func (c *client) answer(method string) *message {
	head := c.final()
	body, err := head.bodyOf(c.reader, method)
	c.script.check(err, "body of the answer")
	c.closing = c.closing || body == c.reader
	all, err := io.ReadAll(body)
	c.script.check(err, "read an answer")
	head.body = string(all)
	return head
}

// close leaves.
func (c *client) close() {
	c.script.check(c.conn.Close(), "close the client's connection")
	c.closing = true
}

// server accepts connections and reads heads of requests; what is done with them the scripts say.
type server struct {
	listener net.Listener
	arrived  chan *request
}

// request is one that has arrived at the server.
type request struct {
	script *script
	head   *message
	conn   halfCloser
	reader *bufio.Reader
	nth    int // on its connection
	done   chan bool
}

// halfCloser is a connection of which one direction can be closed, with TLS or without.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func newServer(secure *tls.Config) (*server, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{listener: listener, arrived: make(chan *request, 10)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if secure != nil {
				conn = tls.Server(conn, secure)
			}
			go s.serve(conn.(halfCloser))
		}
	}()
	return s, nil
}

func (s *server) serve(conn halfCloser) {
	defer func() { _ = conn.Close() }() // whatever was to be said was said
	reader := bufio.NewReader(conn)
	for nth := 1; ; nth++ {
		if conn.SetDeadline(time.Time{}) != nil {
			return
		}
		head, err := readHead(reader)
		if err != nil {
			return
		}
		r := &request{head: head, conn: conn, reader: reader, nth: nth, done: make(chan bool, 1)}
		s.arrived <- r
		if !<-r.done {
			return
		}
	}
}

// end lets the connection take the next request, or closes it. Only the first call counts.
func (r *request) end(keep bool) {
	select {
	case r.done <- keep:
	default:
	}
}

// abort closes the connection at once.
func (r *request) abort() {
	r.script.check(r.conn.Close(), "close the server's connection")
	r.end(false)
}

// rest reads the body of the request.
func (r *request) rest() *request {
	body, err := r.head.bodyOf(r.reader, "")
	r.script.check(err, "body of the request")
	all, err := io.ReadAll(body)
	r.script.check(err, "read the body of the request")
	r.head.body = string(all)
	return r
}

// write sends bytes of an answer.
func (r *request) write(text string) *request {
	_, err := io.WriteString(r.conn, text)
	r.script.check(err, "answer")
	return r
}

// reply answers, see wire, and keeps the connection.
func (r *request) reply(text string) {
	r.write(wire(text))
	r.end(true)
}

// replyLater is reply for what may be more than the line holds.
func (r *request) replyLater(text string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.WriteString(r.conn, wire(text))
		r.end(err == nil)
	}()
	r.script.ended = append(r.script.ended, func() { <-done })
}

// checkGone waits until the proxy has closed its connection to the server, whatever it sends before.
func (r *request) checkGone() {
	_, err := io.Copy(io.Discard, r.reader)
	if isTimeout(err) {
		r.script.failf("the server does not see that the client has left")
	}
	r.end(false)
}

// expect reads exactly what is to come, in a piece or several.
func (s *script) expect(r io.Reader, want, where string) {
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if string(got[:n]) != want {
		s.failf("%s: got %.80q, want %.80q: %v", where, got[:n], want, err)
	}
}
