package proxy

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// trace begins the span of a request, in the trace of its client where it has one, and returns the context of what is done for it.
// The server is told of the span in the client's place. The client's tracestate passes untouched and is not sent to the collector:
// nobody knows what it holds.
func (x *exchange) trace(ctx context.Context) context.Context {
	r := x.request
	header := propagation.HeaderCarrier(r.Header)
	ctx = propagation.TraceContext{}.Extract(ctx, header)
	if parent := trace.SpanContextFromContext(ctx); parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent.WithTraceState(trace.TraceState{}))
	}
	ctx, x.span = x.proxy.Tracer.Start(ctx, methodOf(r)+" "+x.route.String(), trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", methodOf(r)), attribute.String("sidecar.route", x.route.String())))
	if x.id != "" {
		x.span.SetAttributes(attribute.String("sidecar.request_id", x.id))
	}
	propagation.TraceContext{}.Inject(ctx, header)
	for _, name := range []string{"Traceparent", "Tracestate"} {
		keepField(r.Header, name)
	}
	return ctx
}

// endSpan says how the request ended.
func (x *exchange) endSpan(whole bool) {
	x.span.SetAttributes(attribute.Int("http.response.status_code", x.status))
	switch {
	case x.status >= http.StatusInternalServerError:
		x.span.SetStatus(codes.Error, "")
	case !whole:
		x.span.SetStatus(codes.Error, "cut off")
	}
	x.span.End()
}
