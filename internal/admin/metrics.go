package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics are what the server counts. Labels hold a fixed set of values, never what a client chooses.
type Metrics struct {
	registry *prometheus.Registry
	// Connections is grpc_stream_active_connections{service}: open streams.
	Connections *prometheus.GaugeVec

	received, receivedBytes *prometheus.CounterVec // by kind of message
	kinds                   map[string]kind        // those that are known from the start
	results                 map[string]prometheus.Counter
	durabilities            map[string]prometheus.Observer
	publishes               *prometheus.CounterVec // by result
	refused                 *prometheus.CounterVec // by reason
	limited                 *prometheus.CounterVec // by limit
	acks                    *prometheus.HistogramVec
	delays                  prometheus.Histogram
}

// Histograms are native, with buckets besides for scrapers that know only those.
const bucketFactor = 1.1

var (
	ackBuckets   = prometheus.ExponentialBuckets(0.0001, 4, 9) // 0.1 ms to 6.5 s
	delayBuckets = prometheus.ExponentialBuckets(0.001, 4, 9)  // 1 ms to 65 s
)

// kind is the counters of one kind of message.
type kind struct{ messages, bytes prometheus.Counter }

// Words are the values of labels that are set for every message: they are looked up once.
type Words struct {
	Kinds        []string // of messages
	Results      []string // of publishes
	Durabilities []string
}

// NewMetrics registers the metrics, and those of the Go runtime and the process.
func NewMetrics(words Words) *Metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		Connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "grpc_stream_active_connections", Help: "Streams that are open now, by gRPC service.",
		}, []string{"service"}),
		received:      counter("grpc_stream_messages_received_total", "Request messages received, by kind.", "type"),
		receivedBytes: counter("runnel_received_bytes_total", "Bytes of request messages received, before compression, by kind.", "type"),
		publishes:     counter("runnel_publishes_total", "Events that clients wanted to publish, by what became of them.", "result"),
		refused:       counter("runnel_refused_total", "Connections and calls refused because of who the client is, by reason.", "reason"),
		limited:       counter("runnel_limited_total", "Requests refused by a limit, by the limit.", "limit"),
		acks: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "runnel_commit_delay_seconds", Help: "Time from a publish to its commit, for what was committed together, by durability.",
			Buckets: ackBuckets, NativeHistogramBucketFactor: bucketFactor, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"durability"}),
		delays: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "runnel_delivery_delay_seconds", Help: "Time from the acceptance of a live event to its hand-over to the transport, of the oldest event of each batch. Whole milliseconds.",
			Buckets: delayBuckets, NativeHistogramBucketFactor: bucketFactor, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}),
	}
	m.kinds = make(map[string]kind, len(words.Kinds))
	for _, k := range words.Kinds {
		m.kinds[k] = kind{m.received.WithLabelValues(k), m.receivedBytes.WithLabelValues(k)}
	}
	m.results = make(map[string]prometheus.Counter, len(words.Results))
	for _, r := range words.Results {
		m.results[r] = m.publishes.WithLabelValues(r)
	}
	m.durabilities = make(map[string]prometheus.Observer, len(words.Durabilities))
	for _, d := range words.Durabilities {
		m.durabilities[d] = m.acks.WithLabelValues(d)
	}
	m.registry.MustRegister(m.Connections, m.received, m.receivedBytes, m.publishes, m.refused, m.limited, m.acks, m.delays,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Received counts a request message of one of the kinds.
func (m *Metrics) Received(kind string, bytes int) {
	k := m.kinds[kind]
	k.messages.Inc()
	k.bytes.Add(float64(bytes))
}

// Published counts events by what became of them.
func (m *Metrics) Published(result string, events int) {
	m.results[result].Add(float64(events))
}

// Committed notes how long a commit took.
func (m *Metrics) Committed(durability string, took time.Duration) {
	m.durabilities[durability].Observe(took.Seconds())
}

// Refused counts a refusal.
func (m *Metrics) Refused(reason string) { m.refused.WithLabelValues(reason).Inc() }

// Limited counts a refusal by a limit.
func (m *Metrics) Limited(limit string) { m.limited.WithLabelValues(limit).Inc() }

// Delayed notes a delivery's delay.
func (m *Metrics) Delayed(d time.Duration) { m.delays.Observe(d.Seconds()) }

// Gatherer is all metrics, for whoever sends them elsewhere.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Figure is a plain value at the moment of a scrape.
type Figure struct {
	Name, Help string
	Counter    bool // it only rises; else it is a gauge
	Value      float64
	// Label and Of are the only label and its value, if there is one.
	Label, Of string
}

// Figures adds plain values that read returns whenever somebody scrapes.
func (m *Metrics) Figures(read func() []Figure) { m.registry.MustRegister(source(read)) }

// source is a collector of plain values.
type source func() []Figure

// Describe implements prometheus.Collector: what is not described is checked when it is collected.
func (source) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s source) Collect(to chan<- prometheus.Metric) {
	for _, f := range s() {
		var names, values []string
		if f.Label != "" {
			names, values = []string{f.Label}, []string{f.Of}
		}
		kind := prometheus.GaugeValue
		if f.Counter {
			kind = prometheus.CounterValue
		}
		to <- prometheus.MustNewConstMetric(prometheus.NewDesc(f.Name, f.Help, names, nil), kind, f.Value, values...)
	}
}
