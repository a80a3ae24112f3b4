package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"sidecar/proxy"
)

// Ensure that a request whose client left in its middle never looks whole to the server, which would store half a resource.
func TestForwardAbortsBrokenRequests(t *testing.T) {
	for name, raw := range map[string]string{
		"known length": "Content-Length: 100000\r\n\r\nabc",
		"chunked":      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"bad chunk":    "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan error, 1)
			upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadFull(r.Body, make([]byte, 3)); err != nil {
					t.Error(err)
				}
				close(begun)
				_, err := io.ReadAll(r.Body)
				ended <- err
			}))
			t.Cleanup(upstream.Close)
			h := newHouse(t, upstream.URL+"/fhir", nil)
			conn := dial(t, h.url)
			if _, err := io.WriteString(conn, "PUT /fhir/Patient/1 HTTP/1.1\r\nHost: h\r\n"+raw); err != nil {
				t.Fatal(err)
			}
			await(t, "begin of the body", begun)
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			if err := await(t, "end of the body", ended); err == nil {
				t.Error("half a request looks whole")
			}
		})
	}
}

// Ensure that a refusal in the middle of a request reaches the client to its end, and the next request is served.
func TestForwardEndsEarlyAnswers(t *testing.T) {
	upstream := newRawUpstream(t, replying(plainReply))
	early := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	}))
	t.Cleanup(early.Close)
	for name, address := range map[string]string{"refused": early.URL, "read": "http://" + upstream.address} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, address+"/fhir", nil)
			for range 20 {
				body := strings.NewReader(strings.Repeat("0123456789abcdef", 1<<14))
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.base, io.MultiReader(body))
				if err != nil {
					t.Fatal(err)
				}
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					continue // the connection was closed before the client had sent all, as without a proxy
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				want := map[string]string{"refused": "413 too large\n", "read": "200 ok"}[name]
				if answer := fmt.Sprintf("%d %s", response.StatusCode, got); err != nil || answer != want {
					t.Errorf("answer: got %q, %v, want %q", answer, err, want)
				}
			}
		})
	}
}

// Ensure that requests at the same time do not mix, although they share copy buffers and connections.
func TestForwardKeepsRequestsApart(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(upstream.Close)
	h := newHouse(t, upstream.URL+"/fhir", nil)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			want := strings.Repeat(fmt.Sprintf("row %d\n", i), 20000)
			for range 3 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.base, strings.NewReader(want))
				if err != nil {
					t.Error(err)
					return
				}
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || string(got) != want {
					t.Errorf("echo %d: got %d bytes, %v, want %d", i, len(got), err, len(want))
				}
			}
		})
	}
	group.Wait()
}

// quick is an upstream that sends a part of its answer after the last byte of the request, then asks for the end of it.
type quick struct{ end chan error }

func (q quick) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, err := io.ReadFull(r.Body, make([]byte, r.ContentLength)); err != nil {
		return nil, err
	}
	rest := readerFunc(func(p []byte) (int, error) {
		_, err := r.Body.Read(p)
		q.end <- err
		return 0, io.EOF
	})
	body := io.NopCloser(io.MultiReader(strings.NewReader("part"), rest))
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: -1, Body: body, Request: r}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Ensure that the end of a request can be read after its answer has begun: the transport gives the answer up where it cannot.
func TestForwardRemembersTheEndOfARequest(t *testing.T) {
	transport := quick{make(chan error, 1)}
	h := newHouse(t, "http://upstream.invalid/fhir", func(c *proxy.Config) { c.Transport = transport })
	got, _ := exchange(t, h.url, "POST /fhir HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
	if got.body != "part" {
		t.Errorf("body: got %q", got.body)
	}
	if err := await(t, "end of the request", transport.end); !errors.Is(err, io.EOF) {
		t.Errorf("end of the request: got %v, want %v", err, io.EOF)
	}
}

// Ensure that requests in the forms that only odd clients use are forwarded as well.
func TestForwardTakesOddForms(t *testing.T) {
	for name, test := range map[string]struct{ raw, line string }{
		"absolute form":        {"GET http://h/fhir/a%2Fb?x=1;y HTTP/1.1\r\nHost: h\r\n\r\n", "GET /fhir/a%2Fb?x=1;y HTTP/1.1"},
		"HTTP/1.0":             {"GET /fhir//Patient? HTTP/1.0\r\n\r\n", "GET /fhir//Patient? HTTP/1.1"},
		"HTTP/1.0 with a host": {"GET /fhir/Patient HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", "GET /fhir/Patient HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := newRawUpstream(t, replying(plainReply))
			h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
			conn := dial(t, h.url)
			if _, err := io.WriteString(conn, test.raw); err != nil {
				t.Fatal(err)
			}
			if got := await(t, "request", upstream.seen).line; got != test.line {
				t.Errorf("request line: got %q, want %q", got, test.line)
			}
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err != nil || string(body) != "ok" {
				t.Errorf("body: got %q, %v", body, err)
			}
		})
	}
}

func TestWithoutInterceptTheStatementStaysAsItIs(t *testing.T) {
	h := metadataOf(t, "application/fhir+json", withoutMarked(jsonStatements["compact"]))
	upstream, err := url.Parse(h.url)
	if err != nil {
		t.Fatal(err)
	}
	upstream.Path = "/fhir"
	outer := newHouse(t, upstream.String(), func(c *proxy.Config) { c.Intercept = false })
	if got, want := outer.ask(http.MethodGet, outer.base+"/metadata").body, h.ask(http.MethodGet, h.base+"/metadata").body; got != want {
		t.Errorf("statement:\n got %s\nwant %s", got, want)
	}
}

func TestNewRefusesAConfigurationWithoutParts(t *testing.T) {
	if _, err := proxy.New(proxy.Config{}); err == nil {
		t.Error("no error")
	}
}

// Ensure that each forwarded request and each kick-off is counted once, under labels that hold nothing of the request.
func TestMetricsCountWhatIsAnswered(t *testing.T) {
	metrics := proxy.NewMetrics()
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Metrics = metrics })
	for _, path := range []string{"/Patient", "/metadata", "/Patient/nobody", "/$export", "/Patient/$export?x=1", "/$export-status/x"} {
		h.ask(http.MethodGet, h.base+path)
	}
	down := newRawUpstream(t, func(received, net.Conn) bool { return false })
	away := newHouse(t, "http://"+down.address+"/fhir", func(c *proxy.Config) { c.Metrics = metrics })
	away.ask(http.MethodPost, away.base+"/Patient")
	got := counters(t, metrics)
	want := map[string]float64{
		"sidecar_proxy_requests_total 200": 2, "sidecar_proxy_requests_total 404": 1, "sidecar_proxy_requests_total 502": 1,
		"sidecar_kick_offs_total system accepted": 1, "sidecar_kick_offs_total patient refused": 1,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("metrics:\n got %v\nwant %v", got, want)
	}
}
