package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcSink is a collector of OTLP over gRPC.
type grpcSink struct {
	collector.UnimplementedTraceServiceServer
	spanSink
	keys []string
}

// Export takes spans.
func (s *grpcSink) Export(ctx context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != 0 {
		return nil, status.Error(codes.Code(s.refuse), "127.0.0.1 k4n4ri")
	}
	s.keys = metadata.ValueFromIncomingContext(ctx, "x-key")
	s.keep(request)
	return &collector.ExportTraceServiceResponse{}, nil
}

// Ensure spans go by gRPC where the environment says so, with what else it says, and that a collector that refuses them, or is away,
// is told of without its address.
func TestTracesGoByGRPC(t *testing.T) {
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sink, server := &grpcSink{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, sink)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	for name, value := range map[string]string{
		"ENDPOINT": "http://" + listener.Addr().String(), "TRACES_PROTOCOL": "grpc", "PROTOCOL": "http/protobuf", "HEADERS": "X-Key=k4n4ri", "TIMEOUT": "1000",
	} {
		t.Setenv("OTEL_EXPORTER_OTLP_"+name, value)
	}
	seen := &collected{}
	sent, err := openTraces(t.Context(), os.LookupEnv, slog.New(slog.NewTextHandler(seen, nil)))
	if err != nil {
		t.Fatal(err)
	}
	send := func(name string) {
		_, span := sent.tracer().Start(t.Context(), name)
		span.End()
		if err := sent.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	send("one")
	if sink.mu.Lock(); len(sink.keys) != 1 || sink.keys[0] != "k4n4ri" || sink.service != tracerName {
		t.Errorf("key %q, service %q", sink.keys, sink.service)
	}
	sink.refuse = int(codes.PermissionDenied)
	sink.mu.Unlock()
	if got := sink.named("one"); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	send("refused")
	sink.mu.Lock()
	sink.refuse = 0
	sink.mu.Unlock()
	send("two")
	server.Stop()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		t.Error(err)
	}
	began := time.Now()
	send("lost")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the timeout of 1 s is not kept: %s", took)
	}
	sent.close(t.Context())
	text := strings.Join(seen.lines(), "\n")
	for what, times := range map[string]int{"it refuses them": 1, "it cannot be reached": 1, "traces are sent again": 1, "127.0.0.1": 0, "k4n4ri": 0} {
		if got := strings.Count(text, what); got != times {
			t.Errorf("%q stands %d times in the log:\n%s", what, got, text)
		}
	}
}
