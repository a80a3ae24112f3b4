package proxy_test

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
	"testing"
	"time"

	"sidecar/proxy"
)

// Ensure that the client has each piece before the upstream sends the next.
func TestForwardStreamsAnswers(t *testing.T) {
	for name, header := range map[string]http.Header{
		"chunked":      {"Content-Type": {"application/fhir+ndjson"}},
		"events":       {"Content-Type": {"text/event-stream"}},
		"known length": {"Content-Type": {"application/fhir+ndjson"}, "Content-Length": {"18"}},
	} {
		t.Run(name, func(t *testing.T) {
			next := make(chan struct{})
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for name, values := range header {
					w.Header()[name] = values
				}
				flush(t, w)
				for i := range 3 {
					select {
					case <-next:
					case <-r.Context().Done():
						return
					}
					if _, err := fmt.Fprintf(w, "piece%d", i); err != nil {
						t.Error(err)
					}
					flush(t, w)
				}
			}))
			t.Cleanup(upstream.Close)
			h := newHouse(t, upstream.URL+"/fhir", nil)
			response := open(t, t.Context(), h.base+"/Patient")
			defer response.Body.Close()
			for i := range 3 {
				next <- struct{}{}
				piece := make([]byte, len("piece0"))
				if _, err := io.ReadFull(response.Body, piece); err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("piece%d", i); string(piece) != want {
					t.Errorf("piece: got %q, want %q", piece, want)
				}
			}
			if rest, err := io.ReadAll(response.Body); err != nil || len(rest) > 0 {
				t.Errorf("rest: %q, %v", rest, err)
			}
		})
	}
}

func flush(t *testing.T, w http.ResponseWriter) {
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Error(err)
	}
}

// open sends a GET and returns the answer before its body was read.
func open(t *testing.T, ctx context.Context, address string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// Ensure that the upstream has each piece of a request before the client sends the next.
func TestForwardStreamsRequests(t *testing.T) {
	seen := make(chan string)
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			seen <- lines.Text()
		}
	}))
	t.Cleanup(upstream.Close)
	h := newHouse(t, upstream.URL+"/fhir", nil)
	reader, writer := io.Pipe()
	done := make(chan int, 1)
	go func() {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.base, reader)
		if err != nil {
			t.Error(err)
			return
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Error(err)
			return
		}
		response.Body.Close()
		done <- response.StatusCode
	}()
	for i := range 3 {
		line := fmt.Sprintf("piece %d", i)
		if _, err := io.WriteString(writer, line+"\n"); err != nil {
			t.Fatal(err)
		}
		if got := await(t, "piece at the upstream", seen); got != line {
			t.Errorf("piece: got %q, want %q", got, line)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if status := await(t, "answer", done); status != http.StatusOK {
		t.Errorf("status: got %d", status)
	}
}

func TestForwardCancelsUpstreamWhenClientLeaves(t *testing.T) {
	for name, begun := range map[string]bool{"before the answer": false, "in the answer": true} {
		t.Run(name, func(t *testing.T) {
			arrived, left := make(chan struct{}), make(chan struct{})
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if begun {
					flush(t, w)
				}
				close(arrived)
				<-r.Context().Done()
				close(left)
			}))
			t.Cleanup(upstream.Close)
			h := newHouse(t, upstream.URL+"/fhir", nil)
			conn := dial(t, h.url)
			if _, err := io.WriteString(conn, "GET /fhir/Patient HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			await(t, "request at the upstream", arrived)
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			await(t, "end of the upstream's request", left)
		})
	}
}

// Ensure that half an answer is an error for the client and never looks whole.
func TestForwardAbortsBrokenAnswers(t *testing.T) {
	for name, head := range map[string]string{
		"known length": "Content-Length: 1000\r\n\r\nabc",
		"chunked":      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		for _, path := range []string{"/Patient", "/metadata"} {
			t.Run(name+path, func(t *testing.T) {
				upstream := newRawUpstream(t, func(_ received, conn net.Conn) bool {
					_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\n"+head)
					if err != nil {
						t.Error(err)
					}
					return false
				})
				h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
				conn := dial(t, h.url)
				if _, err := io.WriteString(conn, "GET /fhir"+path+" HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					return // nothing of it had come through yet
				}
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				if err == nil && response.StatusCode < 500 {
					t.Errorf("half an answer looks whole: %d %q", response.StatusCode, body)
				}
			})
		}
	}
}

func TestForwardPassesUpgrades(t *testing.T) {
	upstream := newRawUpstream(t, func(got received, conn net.Conn) bool {
		if got.header.Get("Upgrade") != "echo" || got.header.Get("Connection") != "Upgrade" {
			t.Errorf("upgrade headers: got %q", got.header)
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(conn, conn) // until the client has left
		return false
	})
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	conn := dial(t, h.url)
	if _, err := io.WriteString(conn, "GET /fhir/$ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly\n"); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != "echo" {
		t.Fatalf("answer: %d %q", response.StatusCode, response.Header)
	}
	if got, err := reader.ReadString('\n'); err != nil || got != "early\n" { // sent before the switch was granted
		t.Errorf("echo: got %q, %v", got, err)
	}
	for _, line := range []string{"ping\n", "pong\n"} {
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := reader.ReadString('\n'); err != nil || got != line {
			t.Errorf("echo: got %q, %v", got, err)
		}
	}
}

// Ensure that a large write, too, does not go over a connection that the server may be about to close: the sidecar closes it first.
func TestForwardClosesIdleConnectionsOfWrites(t *testing.T) {
	t.Parallel()
	closed := make(chan error, 1)
	upstream := newRawUpstream(t, func(_ received, conn net.Conn) bool {
		_, err := io.WriteString(conn, plainReply)
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(time.Minute)) // connections for reads are kept for longer
		}
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		closed <- err
		return false
	})
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.base+"/Patient", io.MultiReader(strings.NewReader("{}")))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the connection closed", err)
	}
}

func TestForwardAnswersForAServerThatIsAway(t *testing.T) {
	h := newHouse(t, nobody+"/fhir", nil)
	for _, path := range []string{"/Patient", "/metadata", "/Patient?name=secret"} {
		got := h.ask(http.MethodGet, h.base+path)
		checkOutcome(t, got, http.StatusBadGateway, "transient")
		if strings.Contains(got.body, "secret") || strings.Contains(got.body, nobody) {
			t.Errorf("the outcome tells too much: %s", got.body)
		}
	}
}

func TestForwardLeavesEverythingAloneWithoutIntercept(t *testing.T) {
	upstream := newRawUpstream(t, replying(plainReply))
	h := newHouse(t, "http://"+upstream.address+"/fhir", func(c *proxy.Config) { c.Intercept = false })
	for _, request := range []string{
		"GET /fhir/$export", "POST /fhir/Patient/$export", "GET /fhir/Group/1/$export?x=1", "DELETE /fhir/$export-status/1", "GET /fhir/metadata",
	} {
		exchange(t, h.url, request+" HTTP/1.1\r\nHost: h\r\n\r\n")
		if got := await(t, request, upstream.seen); got.line != request+" HTTP/1.1" {
			t.Errorf("request line: got %q, want %q", got.line, request)
		}
	}
}
