package upstream

import (
	"bufio"
	"context"
	"net"
	"sync"
	"time"
)

const (
	// firstSize is the size in bytes of the buffer in which a connection waits for its answer: most heads fit, and many answers.
	firstSize = 4 << 10
	// readerSize is that of the buffers through which answers are read once they have begun.
	readerSize = 64 << 10
	// maxHead bounds in bytes the head of an answer.
	maxHead = 1 << 20
)

// readers lends buffers to the answers that are being read, so that waiting ones need none.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readerSize) }}

// conn is one connection. It is used by one request at a time.
type conn struct {
	net.Conn
	probe     *probe
	idleSince time.Time

	// answered tells that a byte of the answer has come.
	answered bool
	// first[from:to] has been read from the connection and not yet by reader.
	first    [firstSize]byte
	from, to int
	// reader reads the answer; nil while none has begun.
	reader *bufio.Reader
	// headLeft is how many bytes of the head may still come, negative when it has been read.
	headLeft int
	// unwatch ends the watch over the caller's context, and tells whether it had not struck.
	unwatch func() bool
}

func newConn(raw net.Conn) *conn {
	return &conn{Conn: raw, probe: newProbe(raw), headLeft: -1}
}

// begin takes the connection for a request: when its context ends, reads and writes fail.
func (c *conn) begin(ctx context.Context) {
	c.answered = false
	c.unwatch = context.AfterFunc(ctx, func() {
		_ = c.SetDeadline(time.Unix(1, 0)) // a closed connection fails reads and writes as well
	})
}

// await waits for the first bytes of the answer.
func (c *conn) await() error {
	n, err := c.Read(c.first[:])
	if n == 0 && err != nil {
		return err
	}
	c.answered, c.from, c.to = true, 0, n
	c.reader = readers.Get().(*bufio.Reader)
	c.reader.Reset((*source)(c))
	return nil
}

// source is what reader reads: the first bytes, then the connection.
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
		n, err = s.Conn.Read(p)
	}
	if s.headLeft > 0 {
		s.headLeft -= n
	}
	return n, err
}

// buffered is how many bytes of the answer are here and have not been read.
func (c *conn) buffered() int { return c.reader.Buffered() + c.to - c.from }

// end gives the connection back by a request whose answer has been read, and tells whether it may be used again.
func (c *conn) end() bool {
	clean := c.buffered() == 0 // more would belong to no request
	c.release()
	return c.unwatch() && clean
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
	if c.reader != nil {
		c.reader.Reset(nil)
		readers.Put(c.reader)
		c.reader = nil
	}
}
