package proxy_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"sidecar/proxy"
)

// Ensure an answer that the server cuts off is logged and counted, and a whole one, or one whose client leaves, is not.
func TestAnswersThatAreCutOffAreToldOf(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
	for name, test := range map[string]struct {
		rest string
		cut  float64
	}{
		"length":  {"Content-Length: 1000\r\n\r\nabc", 1},
		"chunked": {"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 1},
		"chunk":   {"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nk4n4ri\r\n", 1},
		"whole":   {"Content-Length: 3\r\n\r\nabc", 0},
	} {
		for way, request := range ways {
			upstream := newRawUpstream(t, func(_ received, conn net.Conn) bool {
				_, _ = io.WriteString(conn, head+test.rest) // the proxy may have hung up on it
				return false
			})
			metrics, lines := proxy.NewMetrics(), &logLines{}
			provider := sdktrace.NewTracerProvider()
			h := newHouse(t, "http://"+upstream.address+"/fhir", func(c *proxy.Config) {
				c.Metrics, c.Log, c.Tracer = metrics, lines.logger(), provider.Tracer("test")
			})
			asked, err := http.NewRequestWithContext(t.Context(), request.method, h.base+"/Patient/k4n4ri", strings.NewReader(request.body))
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(asked)
			if err == nil {
				_, err = io.ReadAll(response.Body)
				response.Body.Close()
			}
			if (err != nil) != (test.cut == 1) {
				t.Errorf("%s, %s: the client got %v", name, way, err)
			}
			if got := counters(t, metrics)["sidecar_proxy_cut_answers_total"]; got != test.cut {
				t.Errorf("%s, %s: counted %v, want %v", name, way, got, test.cut)
			}
			if text := lines.text.String(); strings.Contains(text, "k4n4ri") {
				t.Errorf("%s, %s: the log tells of it: %s", name, way, text)
			}
			logged := lines.take(t, "answer cut off")
			if float64(len(logged)) != test.cut {
				t.Errorf("%s, %s: lines %v", name, way, logged)
				continue
			}
			for _, line := range logged {
				if line.Method != request.method || line.Route == "" || line.Request == "" || line.Trace == "" || line.Error == "" {
					t.Errorf("%s, %s: line %+v", name, way, line)
				}
			}
		}
	}
}

// Ensure a client that leaves in the middle of an answer is no answer that the server has cut off.
func TestClientThatLeavesCutsNothingOff(t *testing.T) {
	for way, request := range ways {
		upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			flush(t, w)
			<-r.Context().Done()
		}))
		t.Cleanup(upstream.Close)
		metrics, lines, ended := proxy.NewMetrics(), &logLines{}, make(chan struct{})
		h := newHouse(t, upstream.URL+"/fhir", func(c *proxy.Config) {
			c.Metrics, c.Log, c.AccessLog = metrics, lines.logger(), true
		})
		lines.told = func(line string) {
			if strings.Contains(line, "request served") {
				close(ended)
			}
		}
		asked, err := http.NewRequestWithContext(t.Context(), request.method, h.base+"/Patient", strings.NewReader(request.body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(asked)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		await(t, "end of the request", ended)
		if logged := lines.take(t, "answer cut off"); len(logged) > 0 || counters(t, metrics)["sidecar_proxy_cut_answers_total"] > 0 {
			t.Errorf("%s: %v", way, logged)
		}
	}
}

// Ensure a client learns whether the server can have carried its request out, and the log the trace of it.
func TestServerWithoutAnAnswerMayHaveCarriedOutTheRequest(t *testing.T) {
	hangingUp := newRawUpstream(t, func(received, net.Conn) bool { return false })
	garbage := newRawUpstream(t, func(_ received, conn net.Conn) bool {
		_, _ = io.WriteString(conn, "no HTTP at all\r\n\r\n") // the proxy may have hung up on it
		return false
	})
	for name, test := range map[string]struct{ upstream, want string }{
		"away":       {nobody, "the FHIR server cannot be reached"},
		"hanging up": {"http://" + hangingUp.address, "the FHIR server gave no valid answer; whether the request was carried out is not known"},
		"garbage":    {"http://" + garbage.address, "the FHIR server gave no valid answer; whether the request was carried out is not known"},
	} {
		lines, provider := &logLines{}, sdktrace.NewTracerProvider()
		h := newHouse(t, test.upstream+"/fhir", func(c *proxy.Config) { c.Log, c.Tracer = lines.logger(), provider.Tracer("test") })
		for way, request := range map[string]struct{ method, path, body string }{
			"short": {http.MethodPost, "/Patient", "{}"}, "long": {http.MethodPost, "/Patient", ways["long"].body}, "statement": {http.MethodGet, "/metadata", ""},
		} {
			got := h.send(request.method, h.base+request.path, request.body)
			var outcome struct {
				Issue []struct{ Code, Diagnostics string }
			}
			if err := json.Unmarshal([]byte(got.body), &outcome); err != nil || len(outcome.Issue) != 1 {
				t.Fatalf("%s, %s: %s", name, way, got.body)
			}
			if issue := outcome.Issue[0]; got.status != http.StatusBadGateway || issue.Code != "transient" || issue.Diagnostics != test.want {
				t.Errorf("%s, %s: %d %+v, want %q", name, way, got.status, issue, test.want)
			}
			if logged := lines.take(t, "request not forwarded"); len(logged) != 1 || len(logged[0].Trace) != 32 || logged[0].Request == "" {
				t.Errorf("%s, %s: lines %+v, want one with its trace", name, way, logged)
			}
		}
	}
}
