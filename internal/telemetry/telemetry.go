// Package telemetry sends traces and metrics to an OpenTelemetry collector (OTLP over gRPC). Where it is off there is no Telemetry, and
// nobody asks it anything.
//
// A trace follows an event: its publisher puts a W3C traceparent into the event's headers, the server adds a span from acceptance to
// acknowledgement with one for the commit inside, and whoever handles the event links to them. Only what the publisher samples is
// recorded. No span is as long as a stream.
//
// A Telemetry is safe for concurrent use.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Config says where to send what.
type Config struct {
	Endpoint string // HOST:PORT of the collector
	Insecure bool   // without TLS
	Version  string // of this program
	Metrics  prometheus.Gatherer
	Every    time.Duration // between two sendings of metrics
}

// Telemetry sends until Shutdown.
type Telemetry struct {
	tracer  api.Tracer
	traces  *trace.TracerProvider
	metrics *metric.MeterProvider
}

// headerOfTrace is the header that carries a trace (W3C Trace Context).
const headerOfTrace = "traceparent"

// New begins to send. The collector need not be there: what cannot be sent is tried again for a while, then dropped.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	traceOptions := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(cfg.Endpoint)}
	metricOptions := []otlpmetricgrpc.Option{otlpmetricgrpc.WithEndpoint(cfg.Endpoint)}
	if cfg.Insecure {
		traceOptions = append(traceOptions, otlptracegrpc.WithInsecure())
		metricOptions = append(metricOptions, otlpmetricgrpc.WithInsecure())
	}
	spans, err := otlptracegrpc.New(ctx, traceOptions...)
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", err)
	}
	figures, err := otlpmetricgrpc.New(ctx, metricOptions...)
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", errors.Join(err, spans.Shutdown(ctx)))
	}
	about := resource.NewSchemaless(attribute.String("service.name", "runnel"), attribute.String("service.version", cfg.Version))
	t := &Telemetry{
		traces: trace.NewTracerProvider(trace.WithBatcher(spans), trace.WithResource(about), trace.WithSampler(trace.ParentBased(trace.NeverSample()))),
		metrics: metric.NewMeterProvider(metric.WithResource(about), metric.WithReader(metric.NewPeriodicReader(figures,
			metric.WithInterval(cfg.Every), metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(cfg.Metrics)))))),
	}
	t.tracer = t.traces.Tracer("github.com/runnelhq/runnel")
	return t, nil
}

// Shutdown sends what is left, as long as ctx allows.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { return t.traces.Shutdown(ctx) })
	err := t.metrics.Shutdown(ctx)
	return errors.Join(group.Wait(), err)
}

// Traced reports whether an event carries a trace.
func Traced(r *runnelv1.PublishRequest) bool { return r.GetHeaders()[headerOfTrace] != "" }

// Event is an event that was stored.
type Event struct {
	Request  *runnelv1.PublishRequest
	Response *runnelv1.PublishResponse
	Origin   [2]string // session or request, and its id
	Accepted time.Time
	Began    time.Time // its commit
	Ended    time.Time
}

// Published adds the server's spans to an event's trace: from when it was accepted until its acknowledgement, and the commit inside.
func (t *Telemetry) Published(e Event) {
	r, res := e.Request, e.Response
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier(r.GetHeaders()))
	if !api.SpanContextFromContext(ctx).IsSampled() {
		return
	}
	ctx, span := t.tracer.Start(ctx, "publish", api.WithSpanKind(api.SpanKindServer), api.WithTimestamp(e.Accepted), api.WithAttributes(
		attribute.String("messaging.system", "runnel"), attribute.String("messaging.destination.name", r.GetTopic()),
		attribute.String("messaging.message.id", res.GetEventId()), attribute.Int("messaging.message.body.size", len(r.GetPayload())),
		attribute.Int64("runnel.offset", int64(res.GetOffset())), attribute.Bool("runnel.duplicate", res.GetDuplicate()), attribute.String("runnel."+e.Origin[0], e.Origin[1]),
	))
	_, commit := t.tracer.Start(ctx, "commit", api.WithTimestamp(e.Began), api.WithAttributes(attribute.String("runnel.durability", res.GetDurability().String())))
	commit.End(api.WithTimestamp(e.Ended))
	span.End(api.WithTimestamp(e.Ended))
}
