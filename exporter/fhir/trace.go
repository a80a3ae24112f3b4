package fhir

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// noSpan takes everything and keeps nothing.
var noSpan trace.Span = noop.Span{}

// beginSpan begins the span of a request, which lasts until its body is closed. It is named by what is asked, as errors are: the
// address holds ids and values.
func (c *Client) beginSpan(ctx context.Context, r *request) (context.Context, trace.Span) {
	if c.tracer == nil {
		return ctx, noSpan
	}
	ctx, span := c.tracer.Start(ctx, r.op, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("http.request.method", r.method)))
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(r.header))
	return ctx, span
}

// answeredSpan notes the status of an answer, 0 where none came, and that the rest of the span is its body.
func answeredSpan(span trace.Span, status int) {
	if !span.IsRecording() {
		return
	}
	if status > 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
		span.AddEvent("answered")
	}
	if status != http.StatusOK {
		span.SetStatus(codes.Error, "")
	}
}
