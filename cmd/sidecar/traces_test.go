package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"sidecar/exporter/fhir/fhirtest"
)

// spanSeen is what a test looks at of a span.
type spanSeen struct {
	name, trace, id, parent string
	attributes              map[string]string
}

// spanSink is a collector that keeps what it gets.
type spanSink struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []spanSeen
	service string
	raw     bytes.Buffer
	refuse  int // the status it answers, 0 for 200
}

// newSpanSink serves a collector of OTLP over HTTP, and tells the environment of it.
func newSpanSink(t *testing.T) *spanSink {
	t.Helper()
	s := &spanSink{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	return s
}

// ServeHTTP takes spans.
func (s *spanSink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(r.Body)
	}
	raw, err := io.ReadAll(body)
	request := &collector.ExportTraceServiceRequest{}
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(raw, request) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != 0 {
		w.WriteHeader(s.refuse)
		return
	}
	s.raw.Write(raw)
	s.keep(request)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// keep is called with the mutex held.
func (s *spanSink) keep(request *collector.ExportTraceServiceRequest) {
	for _, resource := range request.GetResourceSpans() {
		for _, attribute := range resource.GetResource().GetAttributes() {
			if attribute.GetKey() == "service.name" {
				s.service = attribute.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				seen := spanSeen{span.GetName(), string(span.GetTraceId()), string(span.GetSpanId()), string(span.GetParentSpanId()), map[string]string{}}
				for _, attribute := range span.GetAttributes() {
					seen.attributes[attribute.GetKey()] = strings.Trim(attribute.GetValue().String(), `"`)
				}
				s.spans = append(s.spans, seen)
			}
		}
	}
}

// named are the spans of a name that have come.
func (s *spanSink) named(name string) []spanSeen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.spans), func(span spanSeen) bool { return span.name != name })
}

// under tells whether a span lies within another one, however deep.
func (s *spanSink) under(span, above spanSeen) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for span.parent != "" && span.parent != above.id {
		i := slices.IndexFunc(s.spans, func(one spanSeen) bool { return one.id == span.parent })
		if i < 0 {
			return false
		}
		span = s.spans[i]
	}
	return span.parent == above.id && span.trace == above.trace
}

// Ensure an export is a trace of its job, its slices and its pages, that the server gets the page's place in it, and that no span
// holds anything of what is marked.
func TestExportIsTraced(t *testing.T) {
	sink := newSpanSink(t)
	t.Setenv("OTEL_SERVICE_NAME", "my-sidecar")
	sample, upstream := marked(t)
	var mu sync.Mutex
	told, gate := map[string]bool{}, sample.Gate
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		mu.Lock()
		defer mu.Unlock()
		told[r.Header.Get("Traceparent")] = true
		return gate(r)
	}
	s := startSidecar(t, upstream, func(c *config) {
		c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password, c.RequestIDHeader, c.MaxRunning = "k4n4ri", "k4n4ri", "X-Request-Id", 2
	})
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	walk := &canaryWalk{sidecar: s, sample: sample, seen: &collected{}}
	walk.follow(walk.as(http.MethodGet, s.base+"/Patient/$export?_type=Patient,Observation&_typeFilter=Observation%3Fsubject%3DPatient/k4n4ri-1"))
	status := walk.status
	for _, path := range []string{"/Patient?name=k4n4ri", "/Patient/k4n4ri-1/_history", "/k4n4ri", "/Group/k4n4ri/$export", "/$export-status/k4n4ri"} {
		walk.as(http.MethodGet, s.base+path)
	}
	walk.as("K4N4RI", s.base+"/Patient/k4n4ri-1")
	sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("_sort") }, Status: http.StatusForbidden, Body: []byte("k4n4ri"), Times: -1})
	walk.follow(walk.as(http.MethodGet, s.base+"/Group/k4n4ri-g/$export"))
	s.stop()
	if raw := strings.ToLower(sink.raw.String()); strings.Contains(raw, canary) || strings.Contains(raw, "127.0.0.1") {
		t.Errorf("a span holds what is marked, or an address: %q", raw)
	}
	for _, name := range []string{"GET search", "GET history", "GET other", "other other", "GET kick-off", "GET status"} {
		if len(sink.named(name)) == 0 {
			t.Errorf("no span %q", name)
		}
	}
	exports := sink.named("export")
	exports = slices.DeleteFunc(exports, func(span spanSeen) bool {
		return !strings.Contains(span.attributes["sidecar.job"], status[strings.LastIndex(status, "/")+1:])
	})
	if len(exports) != 1 {
		t.Fatalf("spans of exports: %v", exports)
	}
	if sink.service != "my-sidecar" {
		t.Errorf("service %q", sink.service)
	}
	for name, least := range map[string]int{"planning": 1, "slice": 2, "search Patient": 1, "search Observation": 1, "storing files": 1} {
		within := 0
		for _, span := range sink.named(name) {
			if sink.under(span, exports[0]) {
				within++
			}
		}
		if within < least {
			t.Errorf("%d spans %q within the export, want at least %d", within, name, least)
		}
	}
	inSlice := false
	for _, page := range sink.named("search Patient") {
		if !sink.under(page, exports[0]) {
			continue
		}
		for _, slice := range sink.named("slice") {
			inSlice = inSlice || sink.under(page, slice) && strings.Contains(slice.attributes["sidecar.type"], "Patient")
		}
		mu.Lock()
		parent := "00-" + hexOf(page.trace) + "-" + hexOf(page.id) + "-01"
		if !told[parent] {
			t.Errorf("the server was not told of %s", parent)
		}
		mu.Unlock()
	}
	if !inSlice {
		t.Error("no page lies within its slice")
	}
}

// Ensure traces are for those who ask for them, and that what is asked for in vain costs a line in the log and nothing else.
func TestTracesAreWanted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		environment map[string]string
		wanted      string
		unfit       string
	}{
		{map[string]string{}, "", ""},
		{map[string]string{"OTEL_SERVICE_NAME": "x"}, "", ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, overHTTP, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, overHTTP, ""},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, overHTTP, ""},
		{map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "", ""},
		{map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "", "OTEL_TRACES_EXPORTER"},
		{map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "", ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, overGRPC, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, "", "OTEL_EXPORTER_OTLP_PROTOCOL"},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TRACES_EXPORTER": "otlp"}, "", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp"}, overGRPC, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TRACES_EXPORTER": "otlp"}, overHTTP, ""},
	} {
		lookup := func(name string) (string, bool) {
			value, ok := test.environment[name]
			return value, ok
		}
		if wanted, unfit := wantsTraces(lookup); wanted != test.wanted || unfit != test.unfit {
			t.Errorf("%v: %q %q, want %q %q", test.environment, wanted, unfit, test.wanted, test.unfit)
		}
	}
	seen := &collected{}
	odd := func(name string) (string, bool) {
		return map[string]string{"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}[name], true
	}
	if sent, err := openTraces(t.Context(), odd, slog.New(slog.NewTextHandler(seen, nil))); sent != nil || err != nil || len(seen.lines()) != 2 {
		t.Errorf("%v, %v, log %q", sent, err, seen.lines())
	}
}

// Ensure a collector that is away, or refuses, is logged once and without its address, and again when it is back.
func TestLostTracesAreLogged(t *testing.T) {
	sink := newSpanSink(t)
	sink.refuse = http.StatusForbidden
	seen := &collected{}
	sent, err := openTraces(t.Context(), func(string) (string, bool) { return "", true }, slog.New(slog.DiscardHandler))
	if sent != nil || err != nil {
		t.Fatalf("%v, %v without a wish", sent, err)
	}
	wish := func(name string) (string, bool) { return map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}[name], true }
	if sent, err = openTraces(t.Context(), wish, slog.New(slog.NewTextHandler(seen, nil))); err != nil {
		t.Fatal(err)
	}
	for _, refuse := range []int{http.StatusForbidden, http.StatusForbidden, 0, 0} {
		sink.mu.Lock()
		sink.refuse = refuse
		sink.mu.Unlock()
		_, span := sent.tracer().Start(t.Context(), "test")
		span.End()
		if err := sent.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Join(seen.lines(), "\n")
	if strings.Count(text, "traces are lost") != 1 || strings.Count(text, "traces are sent again") != 1 || strings.Contains(text, "127.0.0.1") {
		t.Errorf("log:\n%s", text)
	}
	sent.close(t.Context())
}

// hexOf writes an id as headers have it.
func hexOf(id string) string { return fmt.Sprintf("%x", id) }
