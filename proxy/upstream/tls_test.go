package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	"sidecar/proxy/upstream"
)

// corked is a connection that sends all that was written at once.
type corked struct {
	net.Conn
	held *bytes.Buffer // nil for what is sent as it is written
}

func (c *corked) Write(p []byte) (int, error) {
	if c.held != nil {
		return c.held.Write(p)
	}
	return c.Conn.Write(p)
}

// Ensure that a connection with TLS is kept, but not when more has come with an answer, be it a record of its own: it would be taken
// for the answer to the next request, which may be another client's.
func TestSecureConnection(t *testing.T) {
	for name, test := range map[string]struct {
		more  string
		dials int
	}{
		"an answer":       {dials: 1},
		"another answer":  {more: "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother", dials: 3},
		"a single letter": {more: "!", dials: 3},
	} {
		t.Run(name, func(t *testing.T) {
			example := httptest.NewTLSServer(nil) // has a certificate
			config := example.TLS.Clone()
			example.Close()
			synctest.Test(t, func(t *testing.T) {
				dials := 0
				client := &upstream.Client{Dial: func(context.Context) (net.Conn, error) {
					dials++
					ours, theirs := net.Pipe()
					go serveCorked(t, &corked{Conn: theirs}, config, test.more)
					return tls.Client(ours, &tls.Config{InsecureSkipVerify: true}), nil //nolint:gosec // whose certificate it is does not matter here
				}}
				for range 3 {
					if got, err := ask(t.Context(), client, http.MethodGet); err != nil || got != "200 ok" {
						t.Errorf("got %q, %v", got, err)
					}
				}
				client.CloseIdle()
				if dials != test.dials {
					t.Errorf("made %d connections, want %d", dials, test.dials)
				}
			})
		})
	}
}

// serveCorked answers each request, and sends more in a record of its own at the same moment.
func serveCorked(t *testing.T, line *corked, config *tls.Config, more string) {
	conn := tls.Server(line, config)
	defer func() { _ = line.Close() }() // the client may have closed it
	for reader := bufio.NewReader(conn); ; {
		if _, err := http.ReadRequest(reader); err != nil {
			return
		}
		line.held = new(bytes.Buffer)
		for _, record := range []string{ok, more} {
			if _, err := io.WriteString(conn, record); err != nil {
				t.Error(err)
			}
		}
		all := line.held.Bytes()
		line.held = nil
		if _, err := line.Write(all); err != nil {
			return // the client had enough of it
		}
	}
}
