package exporter

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"sidecar/state"
)

// noSpan takes everything and keeps nothing.
var noSpan trace.Span = noop.Span{}

// span begins a span of an export. What it says is what the log may say: ids of jobs, types and numbers.
func (e *Exporter) span(ctx context.Context, name string, says ...attribute.KeyValue) (context.Context, trace.Span) {
	if e.Tracer == nil {
		return ctx, noSpan
	}
	return e.Tracer.Start(ctx, name, trace.WithAttributes(says...))
}

// spanned runs a part of an export in a span of its own. Requests of the part are spans within it (package fhir).
func (e *Exporter) spanned(ctx context.Context, name string, part func(context.Context) error, says ...attribute.KeyValue) error {
	ctx, span := e.span(ctx, name, says...)
	defer span.End()
	err := part(ctx)
	if err != nil && ctx.Err() == nil {
		span.SetStatus(codes.Error, failureOf(err).Code)
	}
	return err
}

// sliceAttributes tell slices apart.
func sliceAttributes(slice *state.Slice) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("sidecar.type", slice.Type), attribute.Int("sidecar.slice", slice.Seq), attribute.String("sidecar.strategy", string(slice.Strategy)),
	}
}
