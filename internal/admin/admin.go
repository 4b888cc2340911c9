// Package admin serves operators over HTTP: metrics, /healthz and /readyz. It is not meant for clients and listens on
// loopback by default.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are what the server counts. Labels hold a fixed set of values, never what a client chooses.
type Metrics struct {
	registry *prometheus.Registry
	// Connections is grpc_stream_active_connections{service}: open streams.
	Connections *prometheus.GaugeVec
	// Received is grpc_stream_messages_received_total{type}: request messages by kind.
	Received *prometheus.CounterVec
}

// NewMetrics registers the metrics, and those of the Go runtime and the process.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		Connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "grpc_stream_active_connections", Help: "Streams that are open now, by gRPC service.",
		}, []string{"service"}),
		Received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_stream_messages_received_total", Help: "Request messages received, by kind.",
		}, []string{"type"}),
	}
	m.registry.MustRegister(m.Connections, m.Received, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Memory shows what is held for clients, by kind, and how much may be.
func (m *Metrics) Memory(limit int64, kinds []string, used func(kind int) int64) {
	const name = "runnel_memory_used_bytes"
	for i, kind := range kinds {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: "Memory held for clients, by what it is held for.", ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(used(i)) }))
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "runnel_memory_limit_bytes", Help: "Memory that may be held for clients (limits.memory_bytes).",
	}, func() float64 { return float64(limit) }))
}

// Serve answers on l until ctx ends. ready says whether the server takes work; its error is shown.
func Serve(ctx context.Context, l net.Listener, m *Metrics, ready func() error) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() }) // scrapes are short and can be repeated
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
