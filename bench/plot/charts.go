package main

import (
	"fmt"
	"slices"

	"gonum.org/v1/plot"

	"github.com/runnelhq/runnel/internal/load"
)

// chart is one picture.
type chart struct {
	file        string
	title, x, y string

	scenario string
	of       func(*load.Result) bool     // which results of the scenario; nil: all
	group    func(*load.Result) string   // bars of the same label stand together; nil: lines over subscribers
	value    func(*load.Result) *float64 // nil: not known
	log      bool
}

var charts = []chart{
	{file: "fanout.svg", title: "Fan-out to 1,000 subscribers, closed loop", x: "window: events on their way per subscriber", y: "deliveries per second",
		scenario: "fanout", of: closed, group: byWindow, value: throughput, log: true},
	{file: "fanout-cpu.svg", title: "Fan-out to 1,000 subscribers: what the server spends", x: "window: events on their way per subscriber", y: "CPU seconds per million deliveries",
		scenario: "fanout", of: closed, group: byWindow, value: serverCPU, log: true},
	{file: "rates.svg", title: "Fan-out to 1,000 subscribers, open loop: 99th percentile of the delay", x: "events per second", y: "milliseconds",
		scenario: "fanout", of: open, group: byRate, value: p99, log: true},
	{file: "topics.svg", title: "1,000 topics with one subscriber each, window 4", x: "", y: "deliveries per second",
		scenario: "topics", of: closed, group: byWindow, value: throughput},
	{file: "memory.svg", title: "Memory of an idle client, after a collection", x: "", y: "kB resident in the server",
		scenario: "connections", group: bySubscribers, value: kilobytes},
	{file: "sdk.svg", title: "Received by one process with full clients, 100 subscribers", x: "window: events on their way per subscriber", y: "events per second",
		scenario: "sdk", of: closed, group: byWindow, value: throughput},
	{file: "sdk-cpu.svg", title: "What a full client spends, 100 subscribers", x: "window: events on their way per subscriber", y: "CPU seconds per million events",
		scenario: "sdk", of: closed, group: byWindow, value: clientCPU},
	{file: "founding-delay.svg", title: "Long polling against streams: mean delay, two events a second to all", x: "connections", y: "milliseconds",
		scenario: "founding", value: mean},
	{file: "founding-cpu.svg", title: "Long polling against streams: CPU of the server, two events a second to all", x: "connections", y: "cores",
		scenario: "founding", value: cores},
	{file: "compression.svg", title: "Compression: bytes on the wire", x: "", y: "bytes per event",
		scenario: "compression", group: byContent, value: wireBytes},
}

func closed(r *load.Result) bool { return r.Window > 0 }
func open(r *load.Result) bool   { return r.Rate > 0 }

func byWindow(r *load.Result) string      { return fmt.Sprint(r.Window) }
func byRate(r *load.Result) string        { return fmt.Sprint(r.Rate) }
func bySubscribers(r *load.Result) string { return fmt.Sprintf("%d clients", r.Subscribers) }
func byContent(r *load.Result) string {
	return fmt.Sprintf("%s of %d bytes, window %d", r.Content, r.Payload, r.Window)
}

func throughput(r *load.Result) *float64 { return &r.DeliveriesPerSecond }
func serverCPU(r *load.Result) *float64  { return r.ServerCPU }
func clientCPU(r *load.Result) *float64  { return r.ClientCPU }
func p99(r *load.Result) *float64        { return r.P99 }
func mean(r *load.Result) *float64       { return r.Mean }
func wireBytes(r *load.Result) *float64  { return &r.WireBytes }
func kilobytes(r *load.Result) *float64  { return scaled(r.RSSPerClient, 1e-3) }

// cores is how many the server has kept busy.
func cores(r *load.Result) *float64 { return scaled(r.ServerCPU, r.DeliveriesPerSecond/1e6) }

func scaled(v *float64, by float64) *float64 {
	if v == nil {
		return nil
	}
	s := *v * by
	return &s
}

// draw returns the picture; nil if there is nothing to show.
func (c *chart) draw(results []*load.Result) (*plot.Plot, error) {
	var systems, groups []string
	values := map[string]map[string]float64{} // by system and group
	lines := map[string][][2]float64{}        // by system
	for _, r := range results {
		v := c.value(r)
		if r.Scenario != c.scenario || c.of != nil && !c.of(r) || v == nil {
			continue
		}
		name := r.System
		if !slices.Contains(systems, name) {
			systems = append(systems, name)
		}
		if c.group == nil {
			lines[name] = append(lines[name], [2]float64{float64(r.Subscribers), *v})
			continue
		}
		g := c.group(r)
		if !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
		if values[name] == nil {
			values[name] = map[string]float64{}
		}
		values[name][g] = *v
	}
	if len(systems) == 0 {
		return nil, nil
	}
	p := newPlot(c)
	if c.group == nil {
		return p, addLines(p, systems, lines)
	}
	return p, addBars(p, c.log, systems, groups, values)
}
