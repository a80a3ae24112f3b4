package upstream

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// heads are seeds: plain heads, and such as must be left to net/http.
var heads = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: W/\"1\"\r\n\r\nok",
	"HTTP/1.1 200\r\ncontent-length:2\r\nx-a: 1\r\nX-A: 2\r\nX-Empty:\r\n\r\nok",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-T: y\r\nContent-Length: 9\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n0",
	"HTTP/1.1 304 Not Modified\r\nContent-Length: 20\r\nKeep-Alive: timeout=5\r\n\r\n",
	"HTTP/1.1 204 No Content\r\n\r\n",
	"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
	"HTTP/1.1 200 OK\r\n\r\nok",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
	"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
	"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
	"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
	"HTTP/1.1 200 OK\r\nConnection: x-a, close\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: y\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
	"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok",
	"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
	"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 099 x\r\n\r\n", "HTTP/1.1 2000 x\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 200OK\r\n\r\n", "HTTP/1.1 200 OK\r\n: x\r\n\r\n",
	"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 100) + "Content-Length: 0\r\n\r\n",
}

// FuzzPlain compares what is read here with what net/http makes of the same bytes.
func FuzzPlain(f *testing.F) {
	for _, head := range heads {
		f.Add([]byte(head), false)
		f.Add([]byte(head), true)
	}
	f.Fuzz(func(t *testing.T, wire []byte, isHead bool) {
		method := http.MethodGet
		if isHead {
			method = http.MethodHead
		}
		c := &conn{headLeft: -1}
		c.Conn = ended{} // everything is in the first bytes
		c.to = copy(c.first[:], wire)
		header := http.Header{}
		if c.to < len(wire) || !c.readPlain(method, header) {
			if len(header) > 0 || c.from != 0 {
				t.Fatalf("a head that is left to net/http was used: %q", header)
			}
			return
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(wire)), &http.Request{Method: method}) //nolint:bodyclose // it holds nothing open
		if err != nil {
			t.Fatalf("net/http reads no answer: %v", err)
		}
		if response.Header.Get("Pragma") != "" && response.Header.Get("Cache-Control") == "no-cache" {
			header["Cache-Control"] = response.Header["Cache-Control"] // net/http may have added it
		}
		want := http.Header{}
		pass(want, response.Header)
		if !maps.EqualFunc(header, want, slices.Equal) {
			t.Errorf("header: got %q, want %q", header, want)
		}
		if c.answer.StatusCode != response.StatusCode || c.answer.close != response.Close {
			t.Errorf("got %d, close %t, want %d, %t", c.answer.StatusCode, c.answer.close, response.StatusCode, response.Close)
		}
		body, err := io.ReadAll(&c.answer)
		wantBody, wantErr := io.ReadAll(response.Body)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(body, wantBody) {
			t.Errorf("body: got %q, %v, want %q, %v", body, err, wantBody, wantErr)
		}
		trailer := response.Trailer
		if err == nil && (len(c.answer.Trailer) > 0 || len(trailer) > 0) {
			for name := range trailer {
				if HopByHop(name) || name == "Content-Length" {
					delete(trailer, name)
				}
			}
			if !reflect.DeepEqual(c.answer.Trailer, trailer) {
				t.Errorf("trailer: got %q, want %q", c.answer.Trailer, trailer)
			}
		}
	})
}

// ended is a connection that brings nothing more.
type ended struct{ net.Conn }

func (ended) Read([]byte) (int, error) { return 0, io.EOF }
