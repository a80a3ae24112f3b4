package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
)

const (
	// tracerName names the spans that are ours.
	tracerName = "fhir-bulk-sidecar"
	// tracesGrace is how long the last spans may take to get to a collector when the process ends.
	tracesGrace = 5 * time.Second
	// overHTTP and overGRPC are the protocols of OTLP that spans can go by.
	overHTTP, overGRPC = "http/protobuf", "grpc"
)

// gRPC's own lines hold addresses. It wants to be told before anything of it is used.
func init() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) }

// traces sends spans to the collector that the environment names, by the variables that OpenTelemetry has for it. Nil sends
// none.
type traces struct {
	provider *sdktrace.TracerProvider
}

// wantsTraces tells by which protocol the environment asks for traces, empty for none. OpenTelemetry would send them to this machine
// where nothing is said; here somebody has to want them. unfit names what it asks for that the sidecar does not have.
func wantsTraces(lookup func(string) (string, bool)) (protocol, unfit string) {
	value := func(name string) string {
		set, _ := lookup(name)
		return strings.TrimSpace(set)
	}
	exporter := value("OTEL_TRACES_EXPORTER")
	switch {
	case strings.EqualFold(value("OTEL_SDK_DISABLED"), "true") || exporter == "none":
		return "", ""
	case exporter == "" && value(otlpVariable+otlpTraces+"ENDPOINT") == "" && value(otlpVariable+"ENDPOINT") == "":
		return "", ""
	case exporter != "" && exporter != "otlp":
		return "", "OTEL_TRACES_EXPORTER"
	}
	for _, name := range []string{otlpVariable + otlpTraces + "PROTOCOL", otlpVariable + "PROTOCOL"} {
		switch protocol := value(name); protocol {
		case "":
		case overHTTP, overGRPC:
			return protocol, ""
		default:
			return "", name
		}
	}
	return overHTTP, ""
}

// openTraces begins to send spans, if the environment asks for it. What it asks for in vain is logged: nobody shall lose a proxy
// for a trace.
func openTraces(ctx context.Context, lookup func(string) (string, bool), log *slog.Logger) (*traces, error) {
	protocol, unfit := wantsTraces(lookup)
	if unfit != "" {
		log.WarnContext(ctx, "no traces are sent: the sidecar sends OTLP by http/protobuf and grpc only", "variable", unfit)
	}
	if protocol == "" {
		return nil, nil
	}
	// OpenTelemetry's own lines hold what they could not read, keys of a collector among it.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	if names := unreadable(lookup); len(names) > 0 {
		log.WarnContext(ctx, "traces are sent without what the environment asks for: it cannot be read", "variable", strings.Join(names, ", "))
	}
	client := otlptracehttp.NewClient()
	if protocol == overGRPC {
		client = otlptracegrpc.NewClient()
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	from, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", tracerName), attribute.String("service.version", versionText())),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		log.WarnContext(ctx, "OTEL_RESOURCE_ATTRIBUTES is not read as a whole")
	}
	return &traces{sdktrace.NewTracerProvider(sdktrace.WithResource(from), sdktrace.WithBatcher(&ownSpans{SpanExporter: exporter, log: log}))}, nil
}

// tracer is what begins spans, nil for none.
func (t *traces) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer(tracerName)
}

// close sends what is left.
func (t *traces) close(ctx context.Context) {
	if t == nil {
		return
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesGrace)
	defer cancel()
	_ = t.provider.Shutdown(grace) // ownSpans has logged what is lost
}

// ownSpans keeps the spans of libraries back, which hold addresses, and logs when spans are lost.
type ownSpans struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	failed atomic.Bool
}

// ExportSpans sends those that are ours. It says once that the collector is away, and once that it is back: the error's own text
// may hold its address.
func (o *ownSpans) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	spans = slices.DeleteFunc(slices.Clone(spans), func(span sdktrace.ReadOnlySpan) bool {
		return span.InstrumentationScope().Name != tracerName
	})
	if len(spans) == 0 {
		return nil
	}
	err := o.SpanExporter.ExportSpans(ctx, spans)
	if before := o.failed.Swap(err != nil); before != (err != nil) {
		if err == nil {
			o.log.InfoContext(ctx, "traces are sent again")
		} else {
			o.log.WarnContext(ctx, "traces are lost: the collector does not take them", "reason", traceTrouble(err))
		}
	}
	return nil
}

// traceTrouble says why spans could not be sent, without the collector's address and its answer.
func traceTrouble(err error) string {
	var connection *net.OpError
	var timeout net.Error
	switch {
	case status.Code(err) == codes.Unavailable: // also when it was tried until the time was over
		return "it cannot be reached"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "it does not answer in time"
	case errors.As(err, &connection):
		return "it cannot be reached"
	}
	return "it refuses them"
}
