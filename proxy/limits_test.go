package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/proxy"
)

// Ensure that a client that polls as clients do is never told that it does so too often, and one that does nothing else is,
// with a pause in whole seconds, and may go on behind it (Bulk Data guide, section "Bulk Data Status Request").
func TestPolls(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := completed()
	h.addJob(job, nil)
	other := completed()
	other.ID, other.Folder = "other", "other"
	h.addJob(other, nil)
	synctest.Test(t, func(t *testing.T) {
		poll := func(id string) *httptest.ResponseRecorder {
			recorder := httptest.NewRecorder()
			h.handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/fhir/$export-status/"+id, nil))
			return recorder
		}
		for range 1000 { // faster than clients do that were told no pause, which is five a second
			if got := poll("0b6a"); got.Code != http.StatusOK {
				t.Fatalf("a poll each 0.02 s: got %d", got.Code)
			}
			time.Sleep(20 * time.Millisecond)
		}
		refused := 0
		for range 200 {
			got := poll("0b6a")
			if got.Code == http.StatusOK {
				continue
			}
			refused++
			checkOutcome(t, answer{got.Code, got.Header(), got.Body.String()}, http.StatusTooManyRequests, "throttled")
			if got.Header().Get("Retry-After") != "5" {
				t.Fatalf("Retry-After: got %q", got.Header().Get("Retry-After"))
			}
		}
		if refused != 170 {
			t.Errorf("of 200 polls without a pause %d are refused, want 170", refused)
		}
		if got := poll("other"); got.Code != http.StatusOK {
			t.Errorf("a poll of another job: got %d", got.Code)
		}
		time.Sleep(5 * time.Second)
		if got := poll("0b6a"); got.Code != http.StatusOK {
			t.Errorf("behind the pause: got %d", got.Code)
		}
	})
}

// Ensure that one client that asks too much does not keep others from their exports, wherever its requests come from.
func TestRequestsOfEachClientAreBounded(t *testing.T) {
	h, _ := newFHIRHouse(t, func(c *proxy.Config) {
		c.RequestsPerSecond = 2
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	for range 30 {
		if got := h.ask(http.MethodGet, h.base+"/Patient"); got.status != http.StatusOK {
			t.Fatalf("a forwarded request: got %d", got.status)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		ask := func(path, from string, header ...string) int {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
			request.RemoteAddr = from + ":1234"
			for i := 0; i < len(header); i += 2 {
				request.Header.Set(header[i], header[i+1])
			}
			recorder := httptest.NewRecorder()
			h.handler.ServeHTTP(recorder, request)
			return recorder.Code
		}
		for _, one := range []struct {
			name   string
			from   string
			header []string
		}{
			{"a token", "192.0.2.1", []string{"Authorization", "Bearer a"}},
			{"an address", "192.0.2.1", nil},
			{"behind a trusted hop", "10.0.0.1", []string{"X-Forwarded-For", "192.0.2.9, 192.0.2.7, 10.0.0.2"}},
		} {
			for _, path := range []string{"/fhir/$export-status/nobody", "/fhir/$export-file/nobody/a"} {
				for n := range 10 {
					if got := ask(path, one.from, one.header...); got != http.StatusNotFound {
						t.Errorf("%s, request %d: got %d", one.name, n, got)
					}
				}
				if got := ask("/fhir/$export-status/nobody", one.from, one.header...); got != http.StatusTooManyRequests {
					t.Errorf("%s: one too many: got %d", one.name, got)
				}
				time.Sleep(10 * time.Second)
			}
		}
		for range 10 {
			ask("/fhir/$export-status/nobody", "192.0.2.1")
		}
		for name, got := range map[string]int{
			"a token":         ask("/fhir/$export-status/nobody", "192.0.2.1", "Authorization", "Bearer b"),
			"another address": ask("/fhir/$export-status/nobody", "192.0.2.2"),
			"forged hops":     ask("/fhir/$export-status/nobody", "10.0.0.1", "X-Forwarded-For", "192.0.2.1, 192.0.2.8"),
		} {
			if got == http.StatusTooManyRequests {
				t.Errorf("%s: got %d", name, got)
			}
		}
	})
}

// piped is a listener for connections in memory.
type piped chan net.Conn

func (p piped) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p piped) Close() error   { return nil }
func (p piped) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// Ensure that a body that comes byte by byte keeps a kick-off for half a minute and no longer.
func TestBodyThatComesTooSlowly(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	synctest.Test(t, func(t *testing.T) {
		connections := make(piped)
		server := &http.Server{Handler: h.handler}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(connections) }()
		ours, theirs := net.Pipe()
		connections <- theirs
		began, gaveUp := time.Now(), make(chan struct{})
		go func() {
			defer close(gaveUp)
			_, err := io.WriteString(ours, "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nContent-Type: application/fhir+json\r\nContent-Length: 1000\r\n\r\n{")
			for err == nil { // until the server has had enough
				time.Sleep(time.Second)
				_, err = io.WriteString(ours, " ")
			}
		}()
		response, err := http.ReadResponse(bufio.NewReader(ours), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		checkOutcome(t, answer{response.StatusCode, response.Header, string(body)}, http.StatusRequestTimeout, "timeout")
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("took %s", took)
		}
		close(connections)
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := errors.Join(ours.Close(), response.Body.Close(), server.Close()); err != nil {
			t.Error(err)
		}
		<-gaveUp
	})
}
