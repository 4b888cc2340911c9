// Package load measures: it makes load at a rate or in a closed loop, records delays without hiding any, and accounts for what
// server and client have spent. The command runnel bench and the comparison with other systems use it alike.
package load

import (
	"encoding/json"
	"io"
)

// Result is one measurement. Its JSON names are a contract. Pointers are nil, and null in JSON, where the figure cannot be had: a
// server on another machine tells neither its CPU time nor its memory.
type Result struct {
	System      string  `json:"system"`
	Scenario    string  `json:"scenario"`
	Subscribers int     `json:"subscribers"`
	Window      int     `json:"window"` // events in flight per subscriber; 0: open loop
	Rate        float64 `json:"rate"`   // events published per second, as intended; 0: closed loop

	DeliveriesPerSecond float64  `json:"deliveries_per_s"`
	P50                 *float64 `json:"p50_ms"`
	P99                 *float64 `json:"p99_ms"`
	Max                 *float64 `json:"max_ms"`
	ServerCPU           *float64 `json:"server_cpu_s_per_million"` // seconds per million deliveries
	ClientCPU           *float64 `json:"client_cpu_s_per_million"`
	RSSPerClient        *float64 `json:"rss_bytes_per_client"`     // of the server
	ConnectCPU          float64  `json:"connect_cpu_us,omitempty"` // server CPU per connection
	Lost                int64    `json:"lost"`                     // neither delivered nor accounted for by a notice

	// What only some scenarios have.
	Noticed    int64   `json:"noticed,omitempty"` // dropped, conflated or in gaps, as the server said
	Connect    float64 `json:"connect_s,omitempty"`
	Publishers int     `json:"publishers,omitempty"` // that each wait for an acknowledgement
	Processes  int     `json:"processes,omitempty"`  // server processes, where there are several
	// Mean delay; RSSPerClient before the server has collected its garbage.
	Mean        *float64 `json:"mean_ms,omitempty"`
	RSSBeforeGC *float64 `json:"rss_before_gc_bytes_per_client,omitempty"`
	// Share of the server's CPU time that the kernel has used for it, 0 to 1.
	ServerKernel *float64 `json:"server_kernel_share,omitempty"`
	Payload      int      `json:"payload_bytes,omitempty"`
	Compression  string   `json:"compression,omitempty"`
	Content      string   `json:"content,omitempty"` // of the payloads, where it matters
	WireBytes    float64  `json:"wire_bytes_per_delivery,omitempty"`
	Seconds      float64  `json:"seconds,omitempty"` // measured
	Storm        *Storm   `json:"storm,omitempty"`
}

// Write writes the result as one line of JSON.
func (r *Result) Write(w io.Writer) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Per returns seconds per million of n, or nil if there is nothing to divide.
func Per(seconds *float64, n int64) *float64 {
	if seconds == nil || n <= 0 {
		return nil
	}
	v := *seconds / float64(n) * 1e6
	return &v
}
