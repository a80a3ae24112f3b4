package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
)

// speaking starts a server that speaks one version of HTTP.
func speaking(t *testing.T, protocol fhir.Protocol, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(protocol == fhir.HTTP1)
	server.Config.Protocols.SetHTTP2(protocol == fhir.HTTP2)
	server.Config.Protocols.SetUnencryptedHTTP2(protocol == fhir.H2C)
	if protocol == fhir.HTTP2 {
		server.EnableHTTP2 = true
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server
}

// spokenTo starts a proxy that speaks one version of HTTP, before a server that speaks another, and returns a client of it.
func spokenTo(t *testing.T, front, back fhir.Protocol, handler http.Handler) (*http.Client, string) {
	t.Helper()
	server := speaking(t, back, handler)
	var certificates *fhir.TLS
	if server.TLS != nil {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		if certificates, err = fhir.NewTLS(path, "", "", nil); err != nil {
			t.Fatal(err)
		}
	}
	h := newHouse(t, server.URL+"/fhir", func(c *proxy.Config) { c.UpstreamProtocol, c.UpstreamTLS = back, certificates })
	proxied := speaking(t, front, h.handler)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	front.Apply(transport)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, proxied.URL + "/fhir"
}

// versions is a server that says how it was spoken to.
func versions(t *testing.T, left chan<- struct{}, next <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
		switch r.URL.Path {
		case "/fhir/echo":
			w.Header().Set("Trailer", "X-Sum")
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(body) // the client looks at it
			w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
		case "/fhir/events":
			for range 3 {
				_, _ = io.WriteString(w, "event\n")
				flush(t, w)
				<-next
			}
		default:
			_ = http.NewResponseController(w).Flush() // the client may leave within it
			<-r.Context().Done()
			left <- struct{}{}
		}
	})
}

// Ensure what the documentation says of servers that know HTTP/1.1 only: with h2 they are spoken to in that, unless
// they refuse the handshake, with h2c in vain.
func TestServerWithoutHTTP2(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	certificates, err := fhir.NewTLS(path, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, server.URL+"/fhir", func(c *proxy.Config) { c.UpstreamProtocol, c.UpstreamTLS = fhir.HTTP2, certificates })
	if got := h.ask(http.MethodGet, h.base+"/Patient"); got.status != http.StatusBadGateway || !strings.Contains(got.body, "cannot be reached") {
		t.Errorf("h2, refused in the handshake: %d %s", got.status, got.body)
	}
	silent := httptest.NewUnstartedServer(server.Config.Handler)
	silent.Listener = tls.NewListener(silent.Listener, &tls.Config{Certificates: server.TLS.Certificates}) // it chooses no version
	silent.Start()
	t.Cleanup(silent.Close)
	h = newHouse(t, "https"+strings.TrimPrefix(silent.URL, "http")+"/fhir", func(c *proxy.Config) { c.UpstreamProtocol, c.UpstreamTLS = fhir.HTTP2, certificates })
	if got := h.ask(http.MethodGet, h.base+"/Patient"); got.status != http.StatusOK || got.body != "HTTP/1.1" {
		t.Errorf("h2, no version chosen: %d %s", got.status, got.body)
	}
	plain := httptest.NewServer(server.Config.Handler)
	t.Cleanup(plain.Close)
	h = newHouse(t, plain.URL+"/fhir", func(c *proxy.Config) { c.UpstreamProtocol = fhir.H2C })
	if got := h.ask(http.MethodGet, h.base+"/Patient"); got.status != http.StatusBadGateway || !strings.Contains(got.body, "gave no valid answer") {
		t.Errorf("h2c: %d %s", got.status, got.body)
	}
}

// Ensure that every version of HTTP is forwarded to every other: large bodies and trailers both ways, each flush at once, and a
// client that leaves.
func TestForwardSpeaksHTTP2(t *testing.T) {
	for _, front := range []fhir.Protocol{fhir.HTTP1, fhir.HTTP2, fhir.H2C} {
		for _, back := range []fhir.Protocol{fhir.HTTP1, fhir.HTTP2, fhir.H2C} {
			if front == fhir.HTTP1 && back == fhir.HTTP1 {
				continue // package fidelity
			}
			t.Run(strings.ReplaceAll(string(front+" to "+back), "/", ""), func(t *testing.T) {
				left, next := make(chan struct{}, 1), make(chan struct{}, 3)
				client, base := spokenTo(t, front, back, versions(t, left, next))
				checkEcho(t, client, base+"/echo", map[fhir.Protocol]string{fhir.HTTP1: "HTTP/1.1"}[back])
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				events := asking(t, ctx, client, base+"/events")
				defer events.Body.Close()
				reader := bufio.NewReader(events.Body)
				for range 3 {
					if line, err := reader.ReadString('\n'); line != "event\n" || err != nil {
						t.Fatalf("event: %q, %v", line, err)
					}
					next <- struct{}{}
				}
				leaving, leave := context.WithCancel(ctx)
				defer leave()
				asking(t, leaving, client, base+"/leave").Body.Close()
				leave()
				await(t, "end of the request at the server", left)
			})
		}
	}
}

func asking(t *testing.T, ctx context.Context, client *http.Client, address string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// checkEcho sends a large body with a trailer and expects both back.
func checkEcho(t *testing.T, client *http.Client, address, proto string) {
	t.Helper()
	large := strings.Repeat("0123456789abcdef", 1<<16)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, io.MultiReader(strings.NewReader(large)))
	if err != nil {
		t.Fatal(err)
	}
	request.Trailer = http.Header{"X-Sum": {"1.10"}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil || string(got) != large {
		t.Errorf("echo: %d bytes, want %d: %v", len(got), len(large), err)
	}
	if sum := response.Trailer.Get("X-Sum"); sum != "1.10" {
		t.Errorf("trailer: got %q", sum)
	}
	if proto == "" {
		proto = "HTTP/2.0"
	}
	if spoken := response.Header.Get("X-Proto"); spoken != proto {
		t.Errorf("the server was spoken to in %s, want %s", spoken, proto)
	}
}

// Ensure that what HTTP/2 lets through, and would end a line or a word of HTTP/1.1, cannot.
func TestForwardTakesNoLinesFromHTTP2(t *testing.T) {
	for name, fields := range map[string][4]string{ // method, path, authority, and a value
		"blank in the path":   {"GET", "/fhir/a b HTTP/1.1", "h", "x"},
		"blank in the query":  {"GET", "/fhir?a b HTTP/1.1", "h", "x"},
		"blank in the method": {"GET /fhir/admin", "/fhir", "h", "x"},
		"line in the path":    {"GET", "/fhir/a\r\nX-Evil: 1", "h", "x"},
		"line in the method":  {"GET\r\nX-Evil: 1", "/fhir", "h", "x"},
		"line in the host":    {"GET", "/fhir", "h\r\nX-Evil: 1", "x"},
		"line in a value":     {"GET", "/fhir", "h", "x\r\nX-Evil: 1"},
		"lone end of line":    {"GET", "/fhir/a\nX-Evil: 1", "h", "x\rX-Evil: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := newRawUpstream(t, replying(plainReply))
			h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
			front := speaking(t, fhir.H2C, h.handler)
			overHTTP2(t, front.URL, fields)
			select {
			case got := <-upstream.seen:
				words := strings.Fields(got.line)
				if len(words) != 3 || strings.Count(got.line, " ") != 2 || words[2] != "HTTP/1.1" || got.header.Get("X-Evil") != "" {
					t.Errorf("arrives as %q %q", got.line, got.header)
				}
			default: // it was refused
			}
		})
	}
}

// overHTTP2 sends a request as no client would, and waits for its end.
func overHTTP2(t *testing.T, address string, fields [4]string) {
	t.Helper()
	conn := dial(t, address)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i, name := range []string{":method", ":path", ":authority", "x-value"} {
		if i == 3 {
			_ = encoder.WriteField(hpack.HeaderField{Name: ":scheme", Value: "http"}) // a buffer takes everything
		}
		_ = encoder.WriteField(hpack.HeaderField{Name: name, Value: fields[i]})
	}
	err := errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}))
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return // the connection was closed
		}
		if header := frame.Header(); header.StreamID == 1 && (header.Type == http2.FrameRSTStream || header.Flags.Has(http2.FlagDataEndStream)) {
			return
		}
	}
}

// Ensure that nobody goes past the sidecar by an upgrade to HTTP/2, and that the wish for any is declined where the server is not
// spoken to in HTTP/1.1: clients such as Java's send it along with every request.
func TestForwardDeclinesUpgrades(t *testing.T) {
	for name, test := range map[string]struct {
		back    fhir.Protocol
		upgrade string
	}{
		"h2c":                   {fhir.HTTP1, "h2c"},
		"h2c among others":      {fhir.HTTP1, "websocket, H2C"},
		"h2c to h2c":            {fhir.H2C, "h2c"},
		"websocket to h2c":      {fhir.H2C, "websocket"},
		"websocket to TLS's h2": {fhir.HTTP2, "websocket"},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan http.Header, 1)
			client, base := spokenTo(t, fhir.HTTP1, test.back, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/Patient/1", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header = http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {test.upgrade}, "Http2-Settings": {"AAMAAABkAAQCAAAAAAIAAAAA"}, "X-Kept": {"x"}}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			header := <-got
			if response.StatusCode != http.StatusOK || header.Get("Upgrade") != "" || header.Get("Http2-Settings") != "" || header.Get("X-Kept") != "x" {
				t.Errorf("got %d, the server was sent %v", response.StatusCode, header)
			}
		})
	}
}
