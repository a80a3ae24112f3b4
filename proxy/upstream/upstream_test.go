package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/proxy/upstream"
)

// patience bounds what should take no time.
const patience = 20 * time.Second

// server is a server whose bytes are written by hand.
type server struct {
	// connections counts those that were made, requests what came over them.
	connections, requests atomic.Int64
	address               string
}

// newServer serves each connection with reply, which is handed the number of the request, from 1; when it returns false the
// connection is closed.
func newServer(t *testing.T, reply func(n int64, r *http.Request, conn net.Conn) bool) *server {
	t.Helper()
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: listener.Addr().String()}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.connections.Add(1)
			context.AfterFunc(t.Context(), func() { _ = conn.Close() }) // ends what still serves
			group.Go(func() {
				defer func() { _ = conn.Close() }() // the reply may have closed it
				for reader := bufio.NewReader(conn); ; {
					r, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, r.Body); err != nil || !reply(s.requests.Add(1), r, conn) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close() // the loop ends with it
		group.Wait()
	})
	return s
}

func (s *server) client(t *testing.T) *upstream.Client {
	client := &upstream.Client{Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", s.address)
	}}
	t.Cleanup(client.CloseIdle)
	return client
}

// says is a reply of fixed bytes.
func says(raw string) func(int64, *http.Request, net.Conn) bool {
	return func(_ int64, _ *http.Request, conn net.Conn) bool {
		_, err := io.WriteString(conn, raw)
		return err == nil
	}
}

// ask sends a request without a body and reads the whole answer.
func ask(ctx context.Context, client *upstream.Client, method string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, "/x", nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Send(r, []byte(method+" /x HTTP/1.1\r\nHost: h\r\n\r\n"), http.Header{}, httptest.NewRecorder().WriteHeader)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(answer)
	answer.Done(err == nil)
	return fmt.Sprintf("%d %s", answer.StatusCode, body), err
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Ensure that a connection serves one request after another, whatever the form of the answers.
func TestConnectionIsKept(t *testing.T) {
	for name, test := range map[string]struct{ method, raw, want string }{
		"length":   {raw: ok, want: "200 ok"},
		"chunked":  {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", want: "200 ok"},
		"trailers": {raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n", want: "200 ok"},
		"empty":    {raw: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", want: "200 "},
		"204":      {raw: "HTTP/1.1 204 No Content\r\n\r\n", want: "204 "},
		"304":      {raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", want: "304 "},
		"HEAD":     {method: http.MethodHead, raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", want: "200 "},
		"interim":  {raw: strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 30) + ok, want: "200 ok"},
		"large":    {raw: "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 300000), want: "200 " + strings.Repeat("x", 300000)},
		"HTTP/1.0": {raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", want: "200 ok"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, says(test.raw))
			client := s.client(t)
			method := test.method
			if method == "" {
				method = http.MethodGet
			}
			for range 3 {
				if got, err := ask(t.Context(), client, method); err != nil || got != test.want {
					t.Fatalf("got %.20q, %v, want %.20q", got, err, test.want)
				}
			}
			if n := s.connections.Load(); n != 1 {
				t.Errorf("made %d connections, want 1", n)
			}
		})
	}
}

// Ensure that a connection is not used again when bytes may be left on it that belong to no request, or to another one.
func TestConnectionIsNotKept(t *testing.T) {
	for name, raw := range map[string]string{
		"close":          "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.0":       "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"another answer": ok + "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother",
		"longer body":    ok + "!",
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, says(raw))
			client := s.client(t)
			for range 3 {
				if got, err := ask(t.Context(), client, http.MethodGet); err != nil || got != "200 ok" {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			if n := s.connections.Load(); n != 3 {
				t.Errorf("made %d connections, want 3", n)
			}
		})
	}
}

// Ensure that what a server sends over an idle connection is no answer to the next request: many say 408 before they close. What may
// be sent again takes a connection however long it was idle, so that no clock counts here.
func TestIdleConnectionIsLookedAt(t *testing.T) {
	first, said := make(chan struct{}), make(chan struct{})
	s := newServer(t, func(n int64, _ *http.Request, conn net.Conn) bool {
		_, err := io.WriteString(conn, ok)
		if n == 1 {
			<-first
			_, err = io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
			close(said)
		}
		return err == nil
	})
	client := s.client(t)
	for n := range 3 {
		if got, err := ask(t.Context(), client, http.MethodGet); err != nil || got != "200 ok" {
			t.Fatalf("got %q, %v", got, err)
		}
		if n == 0 {
			close(first)
			<-said
		}
	}
	if n := s.connections.Load(); n != 2 {
		t.Errorf("made %d connections, want 2", n)
	}
}

// Ensure that a request over a connection that dies under it is sent again if it is safe, and never if it is not.
func TestStaleConnection(t *testing.T) {
	for method, again := range map[string]bool{
		http.MethodGet: true, http.MethodHead: true, http.MethodOptions: true,
		http.MethodPost: false, http.MethodPut: false, http.MethodDelete: false, http.MethodPatch: false,
	} {
		t.Run(method, func(t *testing.T) {
			s := newServer(t, func(n int64, _ *http.Request, conn net.Conn) bool {
				if n == 2 {
					return false // the server closes just when the second request arrives
				}
				_, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
				return err == nil
			})
			client := s.client(t)
			if _, err := ask(t.Context(), client, method); err != nil {
				t.Fatal(err)
			}
			got, err := ask(t.Context(), client, method)
			if again && (err != nil || got != "204 " || s.requests.Load() != 3) {
				t.Errorf("got %q, %v after %d requests", got, err, s.requests.Load())
			}
			if !again && (err == nil || s.requests.Load() != 2) {
				t.Errorf("got %q, no error, after %d requests", got, s.requests.Load())
			}
		})
	}
}

// Ensure that an answer that has begun is not asked for again, and none is taken for whole that is not.
func TestBrokenAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"nothing":          "",
		"half a head":      "HTTP/1.1 200 OK\r\nContent-",
		"no HTTP":          "SSH-2.0-x\r\n\r\n",
		"two lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
		"half a body":      "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
		"half a chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok",
		"no last chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"bad chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
		"endless head":     "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 2000),
		"endless interim":  strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("y", 1000)+"\r\n\r\n", 1100) + ok,
		"status below 100": "HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\nok",
		"switched":         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(_ int64, _ *http.Request, conn net.Conn) bool {
				_, _ = io.WriteString(conn, raw) // a client that has had enough closes
				return false
			})
			if got, err := ask(t.Context(), s.client(t), http.MethodGet); err == nil {
				t.Errorf("got %q, no error", got)
			}
			if n := s.requests.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// Ensure that a caller who leaves gets back at once, and that the server sees it.
func TestCallerLeaves(t *testing.T) {
	for name, raw := range map[string]string{"before the answer": "", "in the body": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			left := make(chan error, 1)
			s := newServer(t, func(_ int64, _ *http.Request, conn net.Conn) bool {
				if _, err := io.WriteString(conn, raw); err != nil {
					t.Error(err)
				}
				leave()
				if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Error(err)
				}
				_, err := conn.Read(make([]byte, 1))
				left <- err
				return false
			})
			if got, err := ask(ctx, s.client(t), http.MethodGet); err == nil {
				t.Errorf("got %q, no error", got)
			}
			var timeout net.Error
			if err := <-left; err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("the server saw %v", err)
			}
		})
	}
}

// pipes makes a client of a server without a network, so that its time can be made up; ended is called when a connection is closed.
func pipes(t *testing.T, ended func()) (client *upstream.Client, connections *int) {
	connections = new(int)
	return &upstream.Client{Dial: func(context.Context) (net.Conn, error) {
		*connections++
		ours, theirs := net.Pipe()
		go func() {
			defer ended()
			for reader := bufio.NewReader(theirs); ; {
				if _, err := http.ReadRequest(reader); err != nil {
					return
				}
				if _, err := io.WriteString(theirs, ok); err != nil {
					t.Error(err)
				}
			}
		}()
		return ours, nil
	}}, connections
}

// Ensure that a connection that nobody uses is closed.
func TestIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan time.Time, 2)
		client, _ := pipes(t, func() { closed <- time.Now() })
		begin := time.Now()
		for range 2 {
			if got, err := ask(t.Context(), client, http.MethodGet); err != nil || got != "200 ok" {
				t.Fatalf("got %q, %v", got, err)
			}
			<-time.After(time.Minute)
		}
		if got := (<-closed).Sub(begin); got != 150*time.Second {
			t.Errorf("closed after %s, want 90 s after the last request", got)
		}
	})
}

// Ensure that what may be sent only once does not go over a connection that the server may be about to close for its idleness.
func TestIdleConnectionIsForRequestsThatMayBeSentAgain(t *testing.T) {
	for method, want := range map[string]int{
		http.MethodGet: 1, http.MethodOptions: 1, http.MethodPost: 2, http.MethodPut: 2, http.MethodDelete: 2, http.MethodPatch: 2,
	} {
		synctest.Test(t, func(t *testing.T) {
			client, connections := pipes(t, func() {})
			defer client.CloseIdle()
			for _, step := range []struct {
				idle time.Duration
				want int
			}{{0, 1}, {900 * time.Millisecond, 1}, {1100 * time.Millisecond, want}, {0, want}} {
				<-time.After(step.idle)
				got, err := ask(t.Context(), client, method)
				if err != nil || got != "200 ok" {
					t.Fatalf("%s: got %q, %v", method, got, err)
				}
				if *connections != step.want {
					t.Errorf("%s after %s: %d connections, want %d", method, step.idle, *connections, step.want)
				}
			}
		})
	}
}

// Ensure that many at once each get their own answer.
func TestAnswersAreNotMixed(t *testing.T) {
	s := newServer(t, func(_ int64, r *http.Request, conn net.Conn) bool {
		text := strings.Repeat(r.URL.Path, 1000)
		_, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		return err == nil
	})
	client := s.client(t)
	var group sync.WaitGroup
	for n := range 16 {
		group.Go(func() {
			for i := range 30 {
				path := fmt.Sprintf("/%d/%d", n, i)
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				answer, err := client.Send(r, []byte("GET "+path+" HTTP/1.1\r\nHost: h\r\n\r\n"), http.Header{}, func(int) {})
				if err != nil {
					t.Error(err)
					return
				}
				if i%7 == 0 { // one who reads nothing
					answer.Done(false)
					continue
				}
				body, err := io.ReadAll(answer)
				answer.Done(err == nil)
				if err != nil || string(body) != strings.Repeat(path, 1000) {
					t.Errorf("%s: got %.20q, %v", path, body, err)
				}
			}
		})
	}
	group.Wait()
}
