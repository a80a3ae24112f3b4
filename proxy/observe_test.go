package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"sidecar/proxy"
)

// accessLine is what a line of the access log says.
type accessLine struct {
	Msg, Method, Route, Request string
	Trace, Error                string
	Status                      int
	Bytes                       int64
	Seconds                     float64
	FirstByte                   float64 `json:"first_byte"`
	Whole                       bool
}

// logLines collects lines as JSON, each with the id of its request.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
	told func(line string) // nil where nobody waits for one
}

// Write takes a line.
func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told != nil {
		l.told(string(b))
	}
	return l.text.Write(b)
}

// withRequest is a handler that adds the id of the request and of its trace, as cmd/sidecar has one.
type withRequest struct{ slog.Handler }

// Handle adds it.
func (h withRequest) Handle(ctx context.Context, record slog.Record) error {
	record.AddAttrs(slog.String("request", proxy.RequestID(ctx)))
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		record.AddAttrs(slog.String("trace", span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, record)
}

func (l *logLines) logger() *slog.Logger {
	return slog.New(withRequest{slog.NewJSONHandler(l, nil)})
}

// take returns the lines with a message and forgets all.
func (l *logLines) take(t *testing.T, msg string) (found []accessLine) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		var one accessLine
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		if one.Msg == msg {
			found = append(found, one)
		}
	}
	l.text.Reset()
	return found
}

// echo is an upstream that shows what it got of a request in the header of its answer.
func echo(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"X-Request-Id", "Traceparent", "Tracestate"} {
		w.Header()["Got-"+name] = r.Header[name]
	}
	if r.URL.Query().Has("own") {
		w.Header().Set("X-Request-Id", "of-the-server")
	}
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "hello")
}

// newEchoHouse serves a proxy before an echo whose log is kept.
func newEchoHouse(t *testing.T, edit func(*proxy.Config)) (*house, *logLines) {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(upstream.Close)
	lines := &logLines{}
	return newHouse(t, upstream.URL+"/fhir", func(c *proxy.Config) {
		c.Log = lines.logger()
		edit(c)
	}), lines
}

// Ensure the access log has one line for each request, by kind, and nothing of its address.
func TestAccessLog(t *testing.T) {
	h, lines := newEchoHouse(t, func(c *proxy.Config) { c.AccessLog = true })
	for _, test := range []struct{ method, path, route string }{
		{"GET", "/fhir/Patient/k4n4ri", "read"},
		{"HEAD", "/fhir/Patient/k4n4ri/_history/k4n4ri", "read"},
		{"GET", "/fhir/Patient?name=k4n4ri", "search"},
		{"GET", "/fhir?_id=k4n4ri", "search"},
		{"GET", "/fhir/Patient/k4n4ri/Observation?code=k4n4ri", "search"},
		{"POST", "/fhir/Patient/_search?x=k4n4ri", "search"},
		{"GET", "/fhir/Patient/k4n4ri/_history", "history"},
		{"GET", "/fhir/_history", "history"},
		{"POST", "/fhir/Patient/k4n4ri/$everything", "operation"},
		{"GET", "/fhir/$k4n4ri", "operation"},
		{"POST", "/fhir/Patient", "write"},
		{"PUT", "/fhir/Patient/k4n4ri", "write"},
		{"PATCH", "/fhir/Patient/k4n4ri", "write"},
		{"DELETE", "/fhir/Patient/k4n4ri", "write"},
		{"POST", "/fhir/", "batch"},
		{"GET", "/fhir/metadata?x=k4n4ri", "metadata"},
		{"OPTIONS", "/fhir/Patient/k4n4ri", "other"},
		{"GET", "/k4n4ri", "other"},
		{"GET", "/fhir/k4n4ri", "other"},
		{"OPTIONS", "/fhir/Patient/$export", "operation"}, // the server's to answer
		{"GET", "/fhir/Patient/$export?x=k4n4ri", "kick-off"},
		{"PUT", "/fhir/Patient/$export?x=k4n4ri", "kick-off"},
		{"GET", "/fhir/$export-status/k4n4ri", "status"},
		{"DELETE", "/fhir/$export-status/k4n4ri", "status"},
		{"GET", "/fhir/$export-file/k4n4ri/k4n4ri", "file"},
		{"GET", "/fhir/$export-attachment/k4n4ri/k4n4ri/k4n4ri", "attachment"},
	} {
		got := h.send(test.method, h.url+test.path, "", "X-Request-Id", "k4n4ri", "User-Agent", "k4n4ri")
		lines.mu.Lock()
		if strings.Contains(lines.text.String(), "k4n4ri") || strings.Contains(lines.text.String(), "127.0.0.1") {
			t.Errorf("%s %s: the log tells of it: %s", test.method, test.path, lines.text.String())
		}
		lines.mu.Unlock()
		logged := lines.take(t, "request served")
		if len(logged) != 1 {
			t.Errorf("%s %s: lines %v", test.method, test.path, logged)
			continue
		}
		line := logged[0]
		if line.Method != test.method || line.Route != test.route || line.Status != got.status || line.Bytes != int64(len(got.body)) && test.method != "HEAD" ||
			!line.Whole || line.Request == "" || line.FirstByte <= 0 || line.Seconds < line.FirstByte {
			t.Errorf("%s %s: %+v, want %s with %d and %d bytes", test.method, test.path, line, test.route, got.status, len(got.body))
		}
	}
	h.send("K4N4RI", h.url+"/fhir/Patient", "")
	if logged := lines.take(t, "request served"); len(logged) != 1 || logged[0].Method != "other" {
		t.Errorf("a method of the client's own: %v", logged)
	}
}

// ways are requests that go the short way and the long one.
var ways = map[string]struct{ method, body string }{
	"short": {http.MethodGet, ""},
	"long":  {http.MethodPost, strings.Repeat("x", 100<<10)},
}

// Ensure an id goes to the server and back, a new one unless a trusted hop has given one that can be an id, and that without the
// setting nothing is added or taken.
func TestRequestIDGoesToTheServerAndBack(t *testing.T) {
	trust := func(c *proxy.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }
	for name, test := range map[string]struct {
		header  string
		trusted bool
		given   []string
		// kept is what is expected instead of a new one, none that there is no header at all.
		kept string
	}{
		"off":             {"", true, nil, "none"},
		"off and given":   {"", false, []string{"a/b c"}, "a/b c"},
		"new":             {"X-Request-ID", true, nil, ""},
		"of a hop":        {"x-request-id", true, []string{"hop-1"}, "hop-1"},
		"of anybody":      {"X-Request-Id", false, []string{"hop-1"}, ""},
		"not an id":       {"X-Request-Id", true, []string{"a/b c"}, ""},
		"too long":        {"X-Request-Id", true, []string{strings.Repeat("x", 65)}, ""},
		"more than one":   {"X-Request-Id", true, []string{"a", "b"}, ""},
		"another's place": {"X-Correlation-Id", true, []string{"a/b c"}, "a/b c"},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newEchoHouse(t, func(c *proxy.Config) {
				if c.RequestIDHeader = test.header; test.trusted {
					trust(c)
				}
			})
			for way, request := range ways {
				var header []string
				for _, id := range test.given {
					header = append(header, "X-Request-Id", id)
				}
				got := h.send(request.method, h.base+"/Patient", request.body, header...)
				there, back := got.header.Get("Got-X-Request-Id"), got.header.Values("X-Request-Id")
				switch {
				case test.kept == "none" && (there != "" || len(back) > 0), test.kept != "" && test.kept != "none" && there != test.kept:
					t.Errorf("%s: the server got %q, the client %q", way, there, back)
				case test.kept == "" && (len(there) < 20 || there == "hop-1" || len(back) != 1 || back[0] != there):
					t.Errorf("%s: the server got %q, the client %q, want a new one", way, there, back)
				}
				got = h.send(request.method, h.base+"/Patient?own", request.body, header...)
				if back := got.header.Values("X-Request-Id"); len(back) != 1 || back[0] != "of-the-server" {
					t.Errorf("%s: the server's own id became %q", way, back)
				}
			}
		})
	}
}

// Ensure no client takes the id and the trace off a request by saying that they end with its connection.
func TestIDAndTraceStay(t *testing.T) {
	provider := sdktrace.NewTracerProvider()
	h, _ := newEchoHouse(t, func(c *proxy.Config) { c.RequestIDHeader, c.Tracer = "X-Request-Id", provider.Tracer("test") })
	for way, request := range ways {
		got := h.send(request.method, h.base+"/Patient", request.body, "Connection", "x-request-id, keep-alive", "Connection", "Traceparent")
		if got.header.Get("Got-X-Request-Id") == "" || got.header.Get("Got-Traceparent") == "" {
			t.Errorf("%s: got %v", way, got.header)
		}
	}
}

// Ensure each outcome of ours has the id by which its request is found in the log, whatever is configured.
func TestOutcomesHaveTheRequestsID(t *testing.T) {
	for _, header := range []string{"", "X-Correlation-Id"} {
		lines := &logLines{}
		h := newHouse(t, nobody+"/fhir", func(c *proxy.Config) { c.RequestIDHeader, c.Log = header, lines.logger() })
		seen := map[string]bool{}
		for way, request := range ways {
			got := h.send(request.method, h.base+"/Patient", request.body)
			var outcome struct{ ID string }
			if err := json.Unmarshal([]byte(got.body), &outcome); err != nil || got.status != http.StatusBadGateway {
				t.Fatalf("%s: %d %s", way, got.status, got.body)
			}
			name := header
			if header == "" {
				name = proxy.DefaultRequestIDHeader
			}
			logged := lines.take(t, "request not forwarded")
			if seen[outcome.ID] || len(outcome.ID) < 20 || got.header.Get(name) != outcome.ID || len(logged) != 1 || logged[0].Request != outcome.ID {
				t.Errorf("%s: id %q in the outcome, %q in the header, log %v", way, outcome.ID, got.header.Get(name), logged)
			}
			seen[outcome.ID] = true
		}
	}
}

// Ensure a request goes on with its client's trace, and that without a tracer its header passes untouched.
func TestTraceOfAClientGoesOn(t *testing.T) {
	const parent, traced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	off, _ := newEchoHouse(t, func(*proxy.Config) {})
	on, _ := newEchoHouse(t, func(c *proxy.Config) { c.Tracer = provider.Tracer("test") })
	for way, request := range ways {
		got := off.send(request.method, off.base+"/Patient", request.body, "Traceparent", parent, "Tracestate", "a=k4n4ri")
		if got.header.Get("Got-Traceparent") != parent || got.header.Get("Got-Tracestate") != "a=k4n4ri" {
			t.Errorf("%s, off: the server got %v", way, got.header)
		}
		if got = off.send(request.method, off.base+"/Patient", request.body); got.header.Get("Got-Traceparent") != "" {
			t.Errorf("%s, off: a trace was begun", way)
		}
		spans.Reset()
		got = on.send(request.method, on.base+"/Patient?name=k4n4ri", request.body, "Traceparent", parent, "Tracestate", "a=k4n4ri")
		var ended []sdktrace.ReadOnlySpan
		for ended = spans.Ended(); len(ended) == 0; ended = spans.Ended() { // it ends behind the answer
		}
		span := ended[0]
		want := "00-" + traced + "-" + span.SpanContext().SpanID().String() + "-01"
		if got.header.Get("Got-Traceparent") != want || got.header.Get("Got-Tracestate") != "a=k4n4ri" || span.Parent().SpanID().String() != "b7ad6b7169203331" {
			t.Errorf("%s: the server got %v, want %s", way, got.header, want)
		}
		if name := map[string]string{"short": "GET search", "long": "POST write"}[way]; span.Name() != name || span.SpanContext().TraceState().Len() > 0 {
			t.Errorf("%s: span %q with the state %q, want %q", way, span.Name(), span.SpanContext().TraceState(), name)
		}
		for _, attribute := range span.Attributes() {
			if strings.Contains(attribute.Value.String(), "k4n4ri") {
				t.Errorf("%s: %s holds what was searched for", way, attribute.Key)
			}
		}
	}
}

// timed is what a histogram has.
type timed struct {
	count   uint64
	seconds float64
}

// readMetrics returns what metrics say, by name and the values of the labels: of the counters those that are not at 0, where they stand for alerts.
func readMetrics(t *testing.T, metrics *proxy.Metrics) (counters map[string]float64, histograms map[string]timed) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counters, histograms = map[string]float64{}, map[string]timed{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			key := family.GetName()
			for _, label := range metric.GetLabel() {
				key += " " + label.GetValue()
			}
			if value := metric.GetCounter().GetValue(); value > 0 {
				counters[key] = value
			}
			if histogram := metric.GetHistogram(); histogram != nil {
				histograms[key] = timed{histogram.GetSampleCount(), histogram.GetSampleSum()}
			}
		}
	}
	return counters, histograms
}

func counters(t *testing.T, metrics *proxy.Metrics) map[string]float64 {
	t.Helper()
	found, _ := readMetrics(t, metrics)
	return found
}

func histograms(t *testing.T, metrics *proxy.Metrics) map[string]timed {
	t.Helper()
	_, found := readMetrics(t, metrics)
	return found
}

// Ensure the histograms take each request, once, by kind and class of status.
func TestRequestsAreTimed(t *testing.T) {
	metrics := proxy.NewMetrics()
	h, _ := newEchoHouse(t, func(c *proxy.Config) { c.Metrics = metrics })
	for range 3 {
		h.ask(http.MethodGet, h.base+"/Patient/1")
	}
	h.ask(http.MethodGet, h.base+"/$export-status/nobody")
	got := histograms(t, metrics)
	want := map[string]uint64{
		"sidecar_proxy_first_byte_seconds read 2xx": 3, "sidecar_proxy_request_seconds read 2xx": 3, "sidecar_proxy_request_seconds status 4xx": 1,
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for key, count := range want {
		if got[key].count != count {
			t.Errorf("%s: got %d, want %d", key, got[key].count, count)
		}
	}
}
