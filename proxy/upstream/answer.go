package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"

	"golang.org/x/net/http/httpguts"
)

var (
	errSwitched = errors.New("upstream: another protocol that nobody asked for")
	errStatus   = errors.New("upstream: a status that HTTP does not have")
	errHead     = errors.New("upstream: the head of the answer with the interim ones, or its trailer, is too large")
)

// HopByHop tells whether a field, by its canonical name, belongs to one connection (RFC 9110, section 7.6.1, and what older
// software sends).
func HopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// roundTrip writes the request and reads answers up to the final one.
func (c *conn) roundTrip(r *http.Request, wire []byte, header http.Header, interim func(status int)) (*Answer, error) {
	c.answer = Answer{}
	_, err := c.Write(wire)
	readErr := c.readAnswer(r, header, interim)
	switch {
	case err == nil && readErr == nil:
	case readErr == nil: // the server has answered, and closed without reading on
		c.answer.close = true
	case err != nil:
		return nil, fmt.Errorf("upstream: send request: %w", err)
	default:
		return nil, readErr
	}
	return &c.answer, nil
}

// readAnswer awaits the answer and reads its head.
func (c *conn) readAnswer(r *http.Request, header http.Header, interim func(status int)) error {
	n, err := c.read(c.first[:])
	if n == 0 {
		return fmt.Errorf("upstream: await answer: %w", err)
	}
	c.answered, c.from, c.to = true, 0, n
	if c.readPlain(r.Method, header) {
		return nil
	}
	reader := c.lend()
	c.headLeft = MaxHead
	for { // a server may say that it is at work as often as it likes
		response, err := http.ReadResponse(reader, r) //nolint:bodyclose // Answer.Done ends it, by its connection
		switch {
		case err != nil && errors.Is(err, io.EOF):
			return fmt.Errorf("upstream: read answer: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("upstream: read answer: %w", err)
		case response.StatusCode == http.StatusSwitchingProtocols:
			return errSwitched
		case response.StatusCode < http.StatusContinue: // net/http reads it, and panics when it has to write it
			return errStatus
		}
		pass(header, response.Header)
		if response.StatusCode >= http.StatusOK {
			c.headLeft = -1
			CleanTrailer(response.Trailer)
			c.answer.StatusCode, c.answer.ContentLength, c.answer.Trailer = response.StatusCode, response.ContentLength, response.Trailer
			c.answer.body, c.answer.close = &netBody{response, &c.answer}, response.Close
			if response.Body == http.NoBody {
				c.answer.ContentLength = 0
			}
			return nil
		}
		interim(response.StatusCode)
	}
}

// netBody is a body that net/http reads.
type netBody struct {
	response *http.Response
	answer   *Answer
}

func (b *netBody) Read(p []byte) (int, error) {
	n, err := b.response.Body.Read(p)
	if err != nil {
		CleanTrailer(b.response.Trailer)
		b.answer.Trailer = b.response.Trailer
	}
	return n, err
}

// pass adds the fields that are not for this connection only.
func pass(to, from http.Header) {
	connection := from["Connection"]
	for name, values := range from {
		if !HopByHop(name) && (connection == nil || !httpguts.HeaderValuesContainsToken(connection, name)) {
			to[name] = append(slices.Clip(to[name]), values...)
		}
	}
}

// lengthBody is a body of known length.
type lengthBody conn

func (b *lengthBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := (*source)(b).Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// chunkedBody is a body in chunks, with trailers that nobody announced.
type chunkedBody struct {
	conn   *conn
	chunks io.Reader
	ended  bool
}

func newChunkedBody(c *conn) *chunkedBody {
	return &chunkedBody{conn: c, chunks: httputil.NewChunkedReader(c.lend())}
}

func (b *chunkedBody) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.chunks.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended = true
		if err := b.conn.readTrailer(); err != nil {
			return n, err
		}
	}
	return n, err
}

// maxTrailer bounds in bytes the fields behind the last chunk.
const maxTrailer = 4 << 10

// readTrailer reads what is behind the last chunk.
func (c *conn) readTrailer() error {
	end, err := c.reader.Peek(2)
	if string(end) == "\r\n" {
		_, err = c.reader.Discard(2)
		return err
	}
	for n := 4; err == nil && string(end[max(0, len(end)-4):]) != "\r\n\r\n"; n++ {
		if end, err = c.reader.Peek(n); n == maxTrailer {
			return errHead
		}
	}
	if err != nil {
		return io.ErrUnexpectedEOF
	}
	trailer, err := textproto.NewReader(c.reader).ReadMIMEHeader()
	if err != nil {
		return err
	}
	c.answer.Trailer = http.Header(trailer)
	CleanTrailer(c.answer.Trailer)
	return nil
}

// CleanTrailer takes out what no trailer can say: it cannot change how the body was read (RFC 9110, section 6.5.1).
func CleanTrailer(trailer http.Header) {
	for name := range trailer {
		if HopByHop(name) || name == "Content-Length" {
			delete(trailer, name)
		}
	}
}
