package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// firstSize is the size in bytes of the buffer in which a connection waits for its answer: most heads fit, and many answers.
	firstSize = 4 << 10
	// readerSize is that of the buffers through which answers are read that do not fit.
	readerSize = 64 << 10
	// glance is for how long at most a request goes on whose caller has left.
	glance = 100 * time.Millisecond
)

// MaxHead bounds in bytes the head of an answer, with those of the interim answers before it.
const MaxHead = 1 << 20

// readers lends buffers to the answers that are being read, so that waiting ones need none.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readerSize) }}

// conn is one connection. It is used by one request at a time.
type conn struct {
	net.Conn
	probe     *probe
	secure    bool
	idleSince time.Time
	answer    Answer

	// ctx is that of the request that has the connection, unwatch ends the watch over it and tells whether it had not struck; nil
	// while nobody watches.
	ctx     context.Context
	unwatch func() bool
	// glanceAt is when the next read gives up to see whether the caller has left; zero for never.
	glanceAt time.Time

	// answered tells that a byte of the answer has come.
	answered bool
	// first[from:to] has been read from the connection and nothing of it used.
	first    [firstSize]byte
	from, to int
	// reader reads the answer where it needs one, else nil.
	reader *bufio.Reader
	// headLeft is how many bytes of the heads may still come, negative when they have been read.
	headLeft int
	// left is how many bytes of a body of known length are still to come.
	left int64
}

func newConn(raw net.Conn) *conn {
	_, secure := raw.(*tls.Conn)
	return &conn{Conn: raw, probe: newProbe(raw), secure: secure, headLeft: -1}
}

// begin takes the connection for a request of so many bytes.
//
// Somebody has to look whether the caller leaves while the server is waited for. To watch each context costs a short request more
// than anything else here, so a read gives up after a moment instead, and only then the watch begins. Reads of TLS cannot give
// up, and a large request may have to wait before it is read.
func (c *conn) begin(ctx context.Context, bytes int) {
	c.ctx, c.unwatch, c.answered = ctx, nil, false
	if c.secure || bytes > firstSize {
		c.watch()
		return
	}
	if now := time.Now(); c.glanceAt.Sub(now) < glance/2 {
		c.glanceAt = now.Add(glance)
		_ = c.SetReadDeadline(c.glanceAt) // a closed connection fails the read as well
	}
}

// watch makes reads and writes fail when the caller has left.
func (c *conn) watch() {
	if !c.glanceAt.IsZero() {
		c.glanceAt = time.Time{}
		_ = c.SetReadDeadline(c.glanceAt)
	}
	c.unwatch = context.AfterFunc(c.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
}

// read reads from the connection.
func (c *conn) read(p []byte) (int, error) {
	n, err := c.Read(p)
	if n == 0 && c.unwatch == nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.watch()
		return c.Read(p)
	}
	return n, err
}

// source is what is read of an answer: the first bytes, then the connection.
type source conn

func (s *source) Read(p []byte) (int, error) {
	if s.headLeft == 0 {
		return 0, errHead
	}
	if s.headLeft > 0 && len(p) > s.headLeft {
		p = p[:s.headLeft]
	}
	var n int
	var err error
	if s.from < s.to {
		n = copy(p, s.first[s.from:s.to])
		s.from += n
	} else {
		n, err = (*conn)(s).read(p)
	}
	if s.headLeft > 0 {
		s.headLeft -= n
	}
	return n, err
}

// lend gives the connection a reader.
func (c *conn) lend() *bufio.Reader {
	c.reader = readers.Get().(*bufio.Reader)
	c.reader.Reset((*source)(c))
	return c.reader
}

// buffered is how many bytes of the answer are here and have not been read.
func (c *conn) buffered() int {
	n := c.to - c.from
	if c.reader != nil {
		n += c.reader.Buffered()
	}
	return n
}

// end takes the connection from a request whose answer has been read, and tells whether it may be used again.
func (c *conn) end() bool {
	clean := c.buffered() == 0 // more would belong to no request
	c.release()
	return clean && (c.unwatch == nil || c.unwatch()) && (!c.secure || !c.unread())
}

// unread tells whether TLS holds bytes that have come with those of the answer: the probe looks at the socket alone, and they would be
// the beginning of the next answer. A read whose time is over brings no others.
func (c *conn) unread() bool {
	if c.SetReadDeadline(time.Unix(1, 0)) != nil {
		return true
	}
	_, err := c.Read(c.first[:1])
	return !errors.Is(err, os.ErrDeadlineExceeded) || c.SetReadDeadline(time.Time{}) != nil
}

// abort closes the connection.
func (c *conn) abort() {
	if c.unwatch != nil {
		c.unwatch()
	}
	_ = c.Close() // nothing that was sent over it is of use any more
	c.release()
}

func (c *conn) release() {
	c.ctx = nil
	if c.reader != nil {
		c.reader.Reset(nil)
		readers.Put(c.reader)
		c.reader = nil
	}
}
