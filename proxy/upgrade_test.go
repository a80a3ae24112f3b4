package proxy_test

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"

	"sidecar/proxy"
)

// switched is an upstream that answers by a switch to a protocol, with a further field.
func switched(t *testing.T, to, field string) (*rawUpstream, string) {
	t.Helper()
	upstream := newRawUpstream(t, func(_ received, conn net.Conn) bool {
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n"+field+"Connection: Upgrade\r\nUpgrade: "+to+"\r\n\r\n")
		return false
	})
	return upstream, "http://" + upstream.address + "/fhir"
}

const upgrading = "GET /fhir/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// Ensure the answer to an upgrade has the id of its request, or that of the server.
func TestUpgradeHasTheRequestsID(t *testing.T) {
	for _, field := range []string{"", "X-Request-Id: of-the-server\r\n"} {
		upstream, base := switched(t, "websocket", field)
		h := newHouse(t, base, func(c *proxy.Config) { c.RequestIDHeader = "X-Request-Id" })
		status, header := firstHead(t, h, upgrading)
		want := await(t, "the request", upstream.seen).header.Get("X-Request-Id")
		if field != "" {
			want = "of-the-server"
		}
		if id := header.Values("X-Request-Id"); status != http.StatusSwitchingProtocols || len(id) != 1 || id[0] != want || want == "" {
			t.Errorf("status %d, id %q, want %q", status, id, want)
		}
	}
}

// Ensure a switch that nobody asked for is one answer of ours, not two.
func TestWrongUpgradeIsCountedOnce(t *testing.T) {
	for name, request := range map[string]string{
		"another": upgrading, "none": upgrading, "unasked, the long way": "GET /fhir/ws HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"unasked, metadata": "GET /fhir/metadata HTTP/1.1\r\nHost: h\r\n\r\n", "unasked": "GET /fhir/ws HTTP/1.1\r\nHost: h\r\n\r\n",
		"unasked, none": "GET /fhir/ws HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			to := "tls/1.0"
			if strings.HasSuffix(name, "none") {
				to = ""
			}
			_, base := switched(t, to, "")
			metrics := proxy.NewMetrics()
			h := newHouse(t, base, func(c *proxy.Config) { c.Metrics = metrics })
			if status, _ := firstHead(t, h, request); status != http.StatusBadGateway {
				t.Errorf("status %d", status)
			}
			want := map[string]float64{"sidecar_proxy_requests_total 502": 1}
			if counted := counters(t, metrics); !maps.Equal(counted, want) {
				t.Errorf("counted %v, want %v", counted, want)
			}
		})
	}
}

// firstHead is the head of the first answer to raw bytes.
func firstHead(t *testing.T, h *house, raw string) (status int, header http.Header) {
	t.Helper()
	conn := dial(t, h.url)
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode, response.Header
}
