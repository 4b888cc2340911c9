// Package otel ties the SDK to OpenTelemetry: publishers put their trace into an event, and whoever handles it links to that. It is a package
// of its own, so that programs without OpenTelemetry do not link it.
//
//	ctx, span := tracer.Start(ctx, "place order")
//	client.Publish(ctx, "orders.new", payload, otel.Trace(ctx))
//	...
//	ctx, span := otel.Handle(ctx, tracer, event)
//	defer span.End()
package otel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/runnelhq/runnel"
)

// Trace puts the trace of ctx into the event's headers (W3C traceparent and tracestate). Without a trace it adds nothing.
func Trace(ctx context.Context) runnel.PublishOption {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return runnel.Headers(carrier)
}

// Handle starts a span for the handling of an event, linked to the trace of its publisher. It is a new trace, or part of ctx's: events are
// handled long after they were published, and by many. The caller ends it.
func Handle(ctx context.Context, tracer trace.Tracer, e runnel.Event) (context.Context, trace.Span) {
	published := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier(e.Headers))
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("messaging.system", "runnel"), attribute.String("messaging.destination.name", e.Topic),
		attribute.String("messaging.message.id", e.ID), attribute.Int64("runnel.offset", int64(e.Position.Offset)),
	)}
	if link := trace.LinkFromContext(published); link.SpanContext.IsValid() {
		options = append(options, trace.WithLinks(link))
	}
	return tracer.Start(ctx, "handle", options...)
}
