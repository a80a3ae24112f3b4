package upstream

import (
	"bytes"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
)

// field is one field of a head.
type field struct{ name, value string }

// readPlain reads the head of a final answer of HTTP/1.1 that has come as a whole and is written as nearly all are. It changes
// nothing and returns false for any other, be it only unusual, and leaves it to net/http: no folded lines, lines that end in \r\n,
// one length or the one coding "chunked", no announced trailers, no fields named by Connection.
func (c *conn) readPlain(method string, header http.Header) bool {
	head, _, whole := bytes.Cut(c.first[:c.to], []byte("\r\n\r\n"))
	if !whole {
		return false
	}
	p := plainHeads.Get().(*plainHead)
	defer p.release()
	if !p.parse(string(head)) {
		return false
	}
	values := make([]string, len(p.fields))
	for i, f := range p.fields {
		values[i] = f.value
		if before := header[f.name]; before != nil {
			header[f.name] = append(before[:len(before):len(before)], f.value)
		} else {
			header[f.name] = values[i : i+1 : i+1]
		}
	}
	c.from = len(head) + len("\r\n\r\n")
	a := &c.answer
	a.StatusCode, a.ContentLength, a.close = p.status, p.length, p.close
	switch {
	case method == http.MethodHead || p.status == http.StatusNoContent || p.status == http.StatusNotModified || p.length == 0:
		a.ContentLength, a.body = 0, http.NoBody
	case p.chunked:
		a.body = newChunkedBody(c)
	case p.length > 0:
		c.left, a.body = p.length, (*lengthBody)(c)
	default: // the body ends with the connection
		a.close, a.body = true, (*source)(c)
	}
	return true
}

// plainHeads lends what a head is taken apart into, which is larger than all else that an answer needs. A head with more than so many
// fields is no plain one.
var plainHeads = sync.Pool{New: func() any { return &plainHead{fields: make([]field, 0, 64)} }}

// plainHead is what a head says.
type plainHead struct {
	status int
	// fields are those that are not for this connection only.
	fields []field
	// length is that of the body, -1 where none is given.
	length         int64
	chunked, close bool
}

// release gives it back.
func (p *plainHead) release() {
	clear(p.fields)
	plainHeads.Put(p)
}

// parse reads a head without the empty line at its end, and tells whether it is a plain one.
func (p *plainHead) parse(head string) bool {
	*p = plainHead{length: -1, fields: p.fields[:0]}
	const version = "HTTP/1.1 "
	line, rest, _ := strings.Cut(head, "\r\n")
	if len(line) < len(version)+3 || line[:len(version)] != version || len(line) > len(version)+3 && line[len(version)+3] != ' ' || !plainText(line) {
		return false
	}
	for _, digit := range []byte(line[len(version) : len(version)+3]) {
		if digit < '0' || digit > '9' {
			return false
		}
		p.status = p.status*10 + int(digit-'0')
	}
	if p.status < http.StatusOK {
		return false
	}
	for rest != "" {
		line, rest, _ = strings.Cut(rest, "\r\n")
		name, value, ok := strings.Cut(line, ":")
		if !ok || !plainName(name) || !plainText(value) || !p.take(textproto.CanonicalMIMEHeaderKey(name), strings.Trim(value, " \t")) {
			return false
		}
	}
	return !p.chunked || p.length < 0
}

// take takes one field, and tells whether it has a plain meaning.
func (p *plainHead) take(name, value string) bool {
	switch name {
	case "Content-Length":
		length, err := strconv.ParseUint(value, 10, 62)
		if err != nil || p.length >= 0 {
			return false
		}
		p.length = int64(length)
	case "Transfer-Encoding":
		if p.chunked || !strings.EqualFold(value, "chunked") {
			return false
		}
		p.chunked = true
	case "Connection":
		switch {
		case strings.EqualFold(value, "close"):
			p.close = true
		case !strings.EqualFold(value, "keep-alive"):
			return false
		}
	case "Trailer":
		return false
	}
	if HopByHop(name) {
		return true
	}
	if len(p.fields) == cap(p.fields) {
		return false
	}
	p.fields = append(p.fields, field{name, value})
	return true
}

// plainName tells whether a name is a token (RFC 9110, section 5.6.2).
func plainName(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < '!' || c > '~' || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return name != ""
}

// plainText tells whether a text is without control characters.
func plainText(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
