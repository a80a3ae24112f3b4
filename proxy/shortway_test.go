package proxy

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Ensure that the short way takes what it can carry whole, and nothing that its request line could be broken with.
func TestShortWayTakes(t *testing.T) {
	request := func(change func(*http.Request)) *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/Patient?name=a", nil)
		if change != nil {
			change(r)
		}
		return r
	}
	header := func(name string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, "x") }
	}
	target := func(uri string) func(*http.Request) { return func(r *http.Request) { r.RequestURI = uri } }
	for name, test := range map[string]struct {
		change func(*http.Request)
		want   bool
	}{
		"a read":             {nil, true},
		"a small body":       {func(r *http.Request) { r.ContentLength = shortBody }, true},
		"a large body":       {func(r *http.Request) { r.ContentLength = shortBody + 1 }, false},
		"unknown length":     {func(r *http.Request) { r.ContentLength = -1 }, false},
		"an upgrade":         {header("Upgrade"), false},
		"Expect":             {header("Expect"), false},
		"trailers":           {func(r *http.Request) { r.Trailer = http.Header{"X": nil} }, false},
		"CONNECT":            {func(r *http.Request) { r.Method = http.MethodConnect }, false},
		"OPTIONS *":          {target("*"), false},
		"an absolute target": {target("http://h/x"), false},
		"odd bytes":          {target("/x|\"<>`\xff//..;%2F?%zz"), true},
		"a space":            {target("/x HTTP/1.1\r\nX: y"), false},
		"a space in a query": {target("/x?a b"), false},
		"a line end":         {target("/x\r\nX:y"), false},
		"a control byte":     {target("/x\x00"), false},
		"a delete byte":      {target("/x\x7f"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (&shortWay{}).takes(request(test.change)); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
		})
	}
}

// Ensure that the server is not asked at all before a small body is whole.
func TestHalfASmallRequestIsNotSent(t *testing.T) {
	asked := make(chan struct{}, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
	t.Cleanup(upstream.Close)
	p := forwarding(t, upstream.URL)
	left := make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		p.newForwarder().ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "PUT /fhir/Patient/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	<-left
	select {
	case <-asked:
		t.Error("the server was asked")
	default:
	}
}

// forwarding returns a proxy that can forward and nothing else.
func forwarding(t testing.TB, upstream string) *Proxy {
	t.Helper()
	at, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Config: Config{Upstream: at, Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(), Live: NewLive()}}
	transport := newTransport(nil)
	p.Transport, p.short = transport, p.newShortWay(transport)
	t.Cleanup(transport.CloseIdleConnections)
	t.Cleanup(p.short.client.CloseIdle)
	return p
}

// BenchmarkForward shows what each way costs beside the server and the client, which are part of the time.
func BenchmarkForward(b *testing.B) {
	small := "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nETag: W/\"1\"\r\nContent-Length: 2048\r\n\r\n" + strings.Repeat("x", 2048)
	large := "HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("2000\r\n"+strings.Repeat("x", 0x2000)+"\r\n", 25) + "0\r\n\r\n"
	for name, raw := range map[string]string{"2KB": small, "200KB": large} {
		address := benchmarkServer(b, raw)
		for _, way := range []string{"short", "long"} {
			b.Run(name+"/"+way, func(b *testing.B) {
				p := forwarding(b, address)
				if way == "long" {
					p.short = nil
				}
				front := httptest.NewServer(p.newForwarder())
				defer front.Close()
				client := front.Client()
				b.ReportAllocs()
				for b.Loop() {
					response, err := client.Get(front.URL + "/fhir/Patient/1") //nolint:noctx // a benchmark ends by itself
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, response.Body); err != nil {
						b.Fatal(err)
					}
					_ = response.Body.Close() // it was read to its end
				}
			})
		}
	}
}

// benchmarkServer answers every request with the same bytes.
func benchmarkServer(b *testing.B, raw string) string {
	b.Helper()
	answer := []byte(raw)
	var config net.ListenConfig
	listener, err := config.Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = listener.Close() }) // the loop ends with it
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }() // the proxy has closed it
				for reader := bufio.NewReader(conn); ; {
					if _, err := http.ReadRequest(reader); err != nil {
						return
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}
