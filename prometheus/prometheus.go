// Package prometheus makes Prometheus metrics of what clients of the SDK do. It is a package of its own, so that programs without Prometheus do
// not link it.
//
//	registry.MustRegister(prometheus.NewCollector(client))
//
// A program with several clients tells them apart with a label: prometheus.WrapRegistererWith of the Prometheus library adds one.
package prometheus

import (
	prom "github.com/prometheus/client_golang/prometheus"

	"github.com/runnelhq/runnel"
)

// metric is one of a client's figures.
type metric struct {
	desc  *prom.Desc
	kind  prom.ValueType
	state string // label of runnel_client_sessions; else empty
	value func(*runnel.ClientStats) float64
}

func gauge(name, help string, value func(*runnel.ClientStats) int) metric {
	return metric{prom.NewDesc("runnel_client_"+name, help, nil, nil), prom.GaugeValue, "", func(s *runnel.ClientStats) float64 { return float64(value(s)) }}
}

func counter(name, help string, value func(*runnel.ClientStats) uint64) metric {
	return metric{prom.NewDesc("runnel_client_"+name+"_total", help, nil, nil), prom.CounterValue, "", func(s *runnel.ClientStats) float64 { return float64(value(s)) }}
}

var sessions = prom.NewDesc("runnel_client_sessions", "Sessions that are open, by state.", []string{"state"}, nil)

func inState(state runnel.State, value func(*runnel.ClientStats) int) metric {
	return metric{sessions, prom.GaugeValue, string(state), func(s *runnel.ClientStats) float64 { return float64(value(s)) }}
}

var metrics = []metric{
	inState(runnel.StateConnecting, func(s *runnel.ClientStats) int { return s.Connecting }),
	inState(runnel.StateLive, func(s *runnel.ClientStats) int { return s.Live }),
	inState(runnel.StateBehind, func(s *runnel.ClientStats) int { return s.Behind }),
	inState(runnel.StateOffline, func(s *runnel.ClientStats) int { return s.Offline }),
	gauge("connections", "Connections to servers, whether they stand or are being made.", func(s *runnel.ClientStats) int { return s.Connections }),
	gauge("unacknowledged_events", "Publishes of sessions that wait for their acknowledgement.", func(s *runnel.ClientStats) int { return s.Unacknowledged }),
	gauge("unacknowledged_bytes", "Payloads of these.", func(s *runnel.ClientStats) int { return s.UnacknowledgedBytes }),
	counter("streams_opened", "Streams of sessions that a server has welcomed.", func(s *runnel.ClientStats) uint64 { return s.Opened }),
	counter("streams_broken", "Streams that ended before their session did, so that it had to come back.", func(s *runnel.ClientStats) uint64 { return s.Broken }),
	counter("streams_moved", "Streams that took the place of one that a server had asked to move.", func(s *runnel.ClientStats) uint64 { return s.Moved }),
	counter("calls", "Unary calls, each with its retries.", func(s *runnel.ClientStats) uint64 { return s.Calls }),
	counter("retries", "Retries of unary calls.", func(s *runnel.ClientStats) uint64 { return s.Retries }),
	counter("retries_denied", "Retries that there was no budget for.", func(s *runnel.ClientStats) uint64 { return s.Denied }),
	counter("rejected", "Attempts that the circuit breaker kept from a server that did not answer.", func(s *runnel.ClientStats) uint64 { return s.Rejected }),
	counter("published", "Events that were acknowledged.", func(s *runnel.ClientStats) uint64 { return s.Published }),
	counter("publish_duplicates", "Events that were acknowledged and had been stored before.", func(s *runnel.ClientStats) uint64 { return s.Duplicates }),
	counter("publish_failed", "Events that were not acknowledged, and will not be.", func(s *runnel.ClientStats) uint64 { return s.Failed }),
	counter("received", "Events that came, each once.", func(s *runnel.ClientStats) uint64 { return s.Received }),
	counter("dropped", "Events that servers dropped since subscriptions were too slow.", func(s *runnel.ClientStats) uint64 { return s.Dropped }),
	counter("conflated", "Events superseded by newer ones of their keys.", func(s *runnel.ClientStats) uint64 { return s.Conflated }),
	counter("gaps", "Stretches of logs that subscriptions could not get any more.", func(s *runnel.ClientStats) uint64 { return s.Gaps }),
}

type collector struct{ client *runnel.Client }

// NewCollector returns a collector of the client's figures, which it asks for when it is asked. It is safe for concurrent use, also when the
// client is closed.
func NewCollector(c *runnel.Client) prom.Collector { return collector{c} }

// Describe implements prometheus.Collector.
func (collector) Describe(to chan<- *prom.Desc) {
	for i, m := range metrics {
		if i == 0 || m.desc != metrics[i-1].desc {
			to <- m.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prom.Metric) {
	stats := c.client.Stats()
	for _, m := range metrics {
		var labels []string
		if m.state != "" {
			labels = []string{m.state}
		}
		to <- prom.MustNewConstMetric(m.desc, m.kind, m.value(&stats), labels...)
	}
}
