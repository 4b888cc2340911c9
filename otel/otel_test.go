package otel_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	metricsv1 "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/otel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// collector takes what a server sends.
type collector struct {
	mu      sync.Mutex
	spans   []*spans.Span
	metrics map[string]bool
}

// traces and metrics are the two services, whose methods have the same name.
type (
	traces struct {
		tracev1.UnimplementedTraceServiceServer
		c *collector
	}
	metrics struct {
		metricsv1.UnimplementedMetricsServiceServer
		c *collector
	}
)

func (t traces) Export(_ context.Context, r *tracev1.ExportTraceServiceRequest) (*tracev1.ExportTraceServiceResponse, error) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			t.c.spans = append(t.c.spans, ss.GetSpans()...)
		}
	}
	return &tracev1.ExportTraceServiceResponse{}, nil
}

func (m metrics) Export(_ context.Context, r *metricsv1.ExportMetricsServiceRequest) (*metricsv1.ExportMetricsServiceResponse, error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	for _, rm := range r.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, one := range sm.GetMetrics() {
				m.c.metrics[one.GetName()] = true
			}
		}
	}
	return &metricsv1.ExportMetricsServiceResponse{}, nil
}

func collect(t *testing.T) (*collector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{metrics: map[string]bool{}}
	g := grpc.NewServer()
	tracev1.RegisterTraceServiceServer(g, traces{c: c})
	metricsv1.RegisterMetricsServiceServer(g, metrics{c: c})
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) }) // ends with Stop
	t.Cleanup(func() { g.Stop(); serving.Wait() })
	return c, l.Addr().String()
}

// A trace follows an event: from its publisher, through the server, to whoever handles it. What is not sampled leaves none.
func TestTrace(t *testing.T) {
	c, endpoint := collect(t)
	s := runneltest.StartServer(t, server.Config{OTLP: server.OTLP{Endpoint: endpoint, Insecure: true, Every: 100 * time.Millisecond}})
	client := s.Client()
	recorder := tracetest.NewSpanRecorder()
	tracer := trace.NewTracerProvider(trace.WithSpanProcessor(recorder)).Tracer("test")
	sub, err := client.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	ctx, span := tracer.Start(t.Context(), "order")
	ack, err := client.Publish(ctx, "a.b", []byte("traced"), otel.Trace(ctx))
	if err != nil {
		t.Fatal(err)
	}
	span.End()
	if _, err := client.Publish(t.Context(), "a.b", []byte("not traced"), otel.Trace(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Publish(t.Context(), "a.b", nil, runnel.Header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")); err != nil { // not sampled
		t.Fatal(err)
	}
	if _, err := client.Publish(t.Context(), "a.b", nil, runnel.Header("traceparent", "nonsense")); err != nil {
		t.Fatal(err)
	}
	traced, err := sub.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, handling := otel.Handle(t.Context(), tracer, traced)
	handling.End()
	plain, err := sub.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, other := otel.Handle(t.Context(), tracer, plain)
	other.End()
	ended := recorder.Ended()
	if links := ended[1].Links(); len(links) != 1 || links[0].SpanContext.TraceID() != span.SpanContext().TraceID() || len(ended[2].Links()) != 0 {
		t.Errorf("links %v and %v", links, ended[2].Links())
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		n, seen := len(c.spans), c.metrics["runnel_publishes_total"] && c.metrics["runnel_delivery_delay_seconds"]
		c.mu.Unlock()
		if n >= 2 && seen {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d spans, metrics %v", n, c.metrics)
		}
	}
	s.Stop() // sends what is left
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 {
		t.Fatalf("%d spans: %v", len(c.spans), c.spans)
	}
	publish, commit := c.spans[0], c.spans[1]
	if publish.GetName() != "publish" {
		publish, commit = commit, publish
	}
	id, parent := span.SpanContext().TraceID(), span.SpanContext().SpanID()
	if string(publish.GetTraceId()) != string(id[:]) || string(publish.GetParentSpanId()) != string(parent[:]) || string(commit.GetParentSpanId()) != string(publish.GetSpanId()) {
		t.Errorf("publish %v\ncommit %v", publish, commit)
	}
	if commit.GetStartTimeUnixNano() < publish.GetStartTimeUnixNano() || commit.GetEndTimeUnixNano() > publish.GetEndTimeUnixNano() {
		t.Error("the commit is not within the publish")
	}
	offset, request := int64(0), ""
	for _, a := range publish.GetAttributes() {
		switch a.GetKey() {
		case "runnel.offset":
			offset = a.GetValue().GetIntValue()
		case "runnel.request":
			request = a.GetValue().GetStringValue()
		}
	}
	if offset != int64(ack.Position.Offset) || request == "" {
		t.Errorf("offset %d of request %q, want %v", offset, request, ack.Position)
	}
}

// A collector that is not there costs nothing but its spans: the server serves, and stops in time.
func TestNoCollector(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{OTLP: server.OTLP{Endpoint: "127.0.0.1:1", Insecure: true, Every: 50 * time.Millisecond}})
	tracer := trace.NewTracerProvider().Tracer("test")
	ctx, span := tracer.Start(t.Context(), "order")
	defer span.End()
	for range 100 {
		if _, err := s.Client().Publish(ctx, "a.b", nil, otel.Trace(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.Stop()
	if time.Since(began) > 20*time.Second {
		t.Errorf("it took %v to stop", time.Since(began))
	}
}
