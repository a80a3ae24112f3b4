// Package upstream is the short way to the FHIR server: an HTTP/1.1 client that sends a request and reads its answer in the
// goroutine that asks. net/http's Transport hands each request to two goroutines and back, which costs a proxy more than all the
// rest of its work; for what it can do besides (HTTP/2, upgrades, bodies of unknown length) the proxy goes on using it.
//
// Promises: an answer belongs to its request, or the connection is not used again; a request that is not safe is sent once; no
// answer is cut short without an error; a caller whose context ends gets back at once, and the server sees the connection close;
// nothing is kept per waiting request but one small buffer. Heads of the plain form are read here, and as net/http would read them;
// all others are read by net/http.
package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// idleTimeout is how long a connection is kept for the next request, maxIdle how many of them.
	idleTimeout = 90 * time.Second
	maxIdle     = 4096
)

// FreshFor is for how long after an answer a connection serves a request that may be sent only once: servers close those that are
// idle for some seconds, and what arrives at that moment is lost.
const FreshFor = time.Second

// Client keeps connections to one server. Its methods may be called from any goroutine.
type Client struct {
	// Dial opens a connection, with TLS where the server has it.
	Dial func(ctx context.Context) (net.Conn, error)

	mu sync.Mutex
	// idle are the connections without a request, the one used last at the end.
	idle []*conn
	// reaper closes what has been idle for too long; nil while nothing is idle.
	reaper *time.Timer
}

// DialError means that there is no connection to the server, so that it cannot have seen the request.
type DialError struct{ Err error }

// Error is that of the cause.
func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Answer is the server's final answer to a request, of which the head has been read. Its body is read by Read, to io.EOF. Done must
// be called, and nothing of the answer used after it.
type Answer struct {
	StatusCode int
	// ContentLength is that of the body in bytes, -1 where it is not known, and 0 where there is none, whatever the header says.
	ContentLength int64
	// Trailer has the names that were announced, and behind the body what came.
	Trailer http.Header

	client *Client
	conn   *conn
	// body is what is still to be read; close tells that the connection ends with it.
	body  io.Reader
	close bool
}

// Send sends a request and returns the final answer. wire holds the request as it goes over the line, body included; r is the
// request that it was made of. The fields of the answer are added to header, without those that are for this connection only.
// Interim answers put theirs there and are told to interim, which takes them out again. When a connection that was kept turns
// out to be dead before it brought a byte of an answer, a safe request is sent again over a new one. Other requests take no
// connection that has been idle for longer than [FreshFor].
//
// The error is a [DialError], or that of the connection, or of an answer that is not HTTP; header is of no use then.
func (c *Client) Send(r *http.Request, wire []byte, header http.Header, interim func(status int)) (*Answer, error) {
	ctx, again := r.Context(), safe(r.Method)
	if kept := c.take(ctx, len(wire), again); kept != nil {
		answer, err := c.exchange(kept, r, wire, header, interim)
		if err == nil || kept.answered || !again || ctx.Err() != nil {
			return answer, err
		}
	}
	raw, err := c.Dial(ctx)
	if err != nil {
		return nil, &DialError{err}
	}
	conn := newConn(raw)
	conn.begin(ctx, len(wire))
	return c.exchange(conn, r, wire, header, interim)
}

// safe tells whether nothing is changed by a method (RFC 9110, section 9.2.1). A PUT or DELETE that is sent twice has the same
// effect, but may leave one version more.
func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// exchange sends a request over a connection and reads the head of the answer.
func (c *Client) exchange(conn *conn, r *http.Request, wire []byte, header http.Header, interim func(status int)) (*Answer, error) {
	answer, err := conn.roundTrip(r, wire, header, interim)
	if err != nil {
		conn.abort()
		if ctx := r.Context(); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	answer.client, answer.conn = c, conn
	return answer, nil
}

// Read reads the body.
func (a *Answer) Read(p []byte) (int, error) { return a.body.Read(p) }

// Paused tells whether the server has sent nothing yet beyond what was read.
func (a *Answer) Paused() bool { return a.conn.buffered() == 0 }

// Done ends an answer. Its connection is kept for the next request if whole tells that the body was read to its end; if not, it
// is closed, so that the server sees that nobody reads on.
func (a *Answer) Done(whole bool) {
	if whole && a.conn.end() && !a.close {
		a.client.keep(a.conn)
		return
	}
	a.conn.abort()
}

// take returns a connection that is still good, for a request of so many bytes that may be sent again or not; nil for none.
func (c *Client) take(ctx context.Context, bytes int, again bool) *conn {
	for {
		c.mu.Lock()
		last := len(c.idle) - 1
		if last < 0 || !again && time.Since(c.idle[last].idleSince) > FreshFor {
			c.mu.Unlock()
			return nil
		}
		conn := c.idle[last]
		c.idle[last], c.idle = nil, c.idle[:last]
		c.mu.Unlock()
		conn.begin(ctx, bytes)
		if conn.quiet() {
			return conn
		}
		conn.abort()
	}
}

// keep puts a connection behind the others.
func (c *Client) keep(conn *conn) {
	conn.idleSince = time.Now()
	c.mu.Lock()
	if len(c.idle) < maxIdle {
		c.idle = append(c.idle, conn)
		if c.reaper == nil {
			c.reaper = time.AfterFunc(idleTimeout, c.reap)
		}
		conn = nil
	}
	c.mu.Unlock()
	if conn != nil {
		conn.abort()
	}
}

// reap closes the connections that nobody has used for idleTimeout.
func (c *Client) reap() {
	c.mu.Lock()
	old := 0
	for old < len(c.idle) && time.Since(c.idle[old].idleSince) >= idleTimeout {
		old++
	}
	dead := append([]*conn(nil), c.idle[:old]...)
	c.idle = append(c.idle[:0], c.idle[old:]...)
	clear(c.idle[len(c.idle) : len(c.idle)+old])
	c.reaper = nil
	if len(c.idle) > 0 {
		c.reaper = time.AfterFunc(time.Until(c.idle[0].idleSince.Add(idleTimeout)), c.reap)
	}
	c.mu.Unlock()
	for _, conn := range dead {
		conn.abort()
	}
}

// CloseIdle closes the connections without a request.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	dead := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, conn := range dead {
		conn.abort()
	}
}
