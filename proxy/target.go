package proxy

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// rawPath is the path of a request target as it came, without the query; empty where it has none.
func rawPath(target string) string {
	path, _, _ := strings.Cut(target, "?")
	if strings.HasPrefix(path, "/") {
		return path
	}
	_, rest, _ := strings.Cut(path, "://") // the absolute form
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		return rest[i:]
	}
	return ""
}

// isOdd tells whether Go would escape a path anew, such as one with a raw "|". One with a blank, which HTTP/2 lets through, has to be:
// it would end the target of HTTP/1.1.
func isOdd(path string, u *url.URL) bool {
	return path != "" && path != u.EscapedPath() && !strings.Contains(path, " ")
}

// verbatimPath keeps a path byte for byte. One that begins with "//" an URL cannot be told to keep: it would be taken for an authority,
// which HTTP/2 takes off again, and HTTP/1.1 does not.
func (p *Proxy) verbatimPath(out *http.Request, target string) {
	path := rawPath(target)
	if !isOdd(path, out.URL) {
		return
	}
	if !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path
	} else if !p.speaksHTTP1() {
		out.URL.Opaque = "//" + orElse(out.Host, out.URL.Host) + path
	}
}

// targetConn is a connection of HTTP/1.1 on which the paths pass that verbatimPath cannot keep.
type targetConn struct {
	net.Conn
	// path is that of the next request, empty for what net/http makes of it.
	path string
}

// take has the connection know of the request that is about to be sent.
func (c *targetConn) take(r *http.Request) {
	if c.path = rawPath(r.RequestURI); !strings.HasPrefix(c.path, "//") || !isOdd(c.path, r.URL) {
		c.path = ""
	}
}

// Write puts the path into the request line, with which the first bytes of a request begin: net/http writes it as one piece.
func (c *targetConn) Write(b []byte) (int, error) {
	if c.path == "" {
		return c.Conn.Write(b)
	}
	path := c.path
	c.path = ""
	method, rest, _ := bytes.Cut(b, []byte(" "))
	end := bytes.IndexAny(rest, "? ")
	if end < 0 {
		return c.Conn.Write(b)
	}
	line := append(append(append(make([]byte, 0, len(b)+len(path)), method...), ' '), path...)
	n, err := c.Conn.Write(append(line, rest[end:]...))
	if err != nil {
		return min(n, len(b)), err
	}
	return len(b), nil
}

// CloseWrite closes one direction, where the connection can.
func (c *targetConn) CloseWrite() error { return closeWrite(c.Conn) }

// keepTargets has a transport open connections on which all paths pass.
func keepTargets(transport *http.Transport, dial func(context.Context) (net.Conn, error)) {
	open := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return &targetConn{Conn: conn}, nil
	}
	transport.DialContext, transport.DialTLSContext = open, open
}
