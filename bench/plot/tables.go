package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/runnelhq/runnel/internal/load"
)

// A document says where a table belongs by a line that begins with tableMark and names it; the table takes the place of what stands
// between that and the next line tableEnd.
const (
	tableMark = "<!-- results: "
	tableEnd  = "<!-- end -->"
)

// column is a figure of a table; of is its text, ref the result of the reference under the same load, or nil.
type column struct {
	head string
	of   func(r, ref *load.Result) string
}

// table shows the results of one scenario, one in each row.
type table struct {
	scenario  string
	rows      func(*load.Result) bool // nil: all
	reference string                  // the system that others are compared with
	columns   []column
}

var (
	colSystem      = column{"system", func(r, _ *load.Result) string { return r.System }}
	colWindow      = column{"window", func(r, _ *load.Result) string { return strconv.Itoa(r.Window) }}
	colRate        = column{"events/s", func(r, _ *load.Result) string { return short(r.Rate) }}
	colConnections = column{"connections", func(r, _ *load.Result) string { return strconv.Itoa(r.Subscribers) }}
	colContent     = column{"content", func(r, _ *load.Result) string { return fmt.Sprintf("%s, %d B", r.Content, r.Payload) }}
	colDeliveries  = column{"deliveries/s", func(r, _ *load.Result) string { return short(r.DeliveriesPerSecond) }}
	colRatio       = column{"of %s", func(r, ref *load.Result) string { return ratio(&r.DeliveriesPerSecond, ref, throughput) }}
	colMean        = column{"mean ms", func(r, _ *load.Result) string { return cellOf(r.Mean) }}
	colP50         = column{"p50 ms", func(r, _ *load.Result) string { return cellOf(r.P50) }}
	colP99         = column{"p99 ms", func(r, _ *load.Result) string { return cellOf(r.P99) }}
	colP99Ratio    = column{"p99 of %s's", func(r, ref *load.Result) string { return ratio(r.P99, ref, p99) }}
	colMax         = column{"max ms", func(r, _ *load.Result) string { return cellOf(r.Max) }}
	colServerCPU   = column{"server CPU s/M", func(r, _ *load.Result) string { return cellOf(r.ServerCPU) }}
	colClientCPU   = column{"client CPU s/M", func(r, _ *load.Result) string { return cellOf(r.ClientCPU) }}
	colKernel      = column{"of it in the kernel", func(r, _ *load.Result) string { return percent(r.ServerKernel) }}
	colCores       = column{"server cores", func(r, _ *load.Result) string { return cellOf(cores(r)) }}
	colMemory      = column{"kB/client", func(r, _ *load.Result) string { return cellOf(kilobytes(r)) }}
	colBefore      = column{"before GC", func(r, _ *load.Result) string { return cellOf(scaled(r.RSSBeforeGC, 1e-3)) }}
	colConnectCPU  = column{"us CPU to connect", func(r, _ *load.Result) string { return cellOf(&r.ConnectCPU) }}
	colBytes       = column{"bytes/event", func(r, _ *load.Result) string { return cellOf(&r.WireBytes) }}
)

var tables = map[string]table{
	"fanout":       {"fanout", closed, "nats", []column{colWindow, colSystem, colDeliveries, colRatio, colP50, colP99, colServerCPU, colKernel, colClientCPU}},
	"fanout rates": {"fanout", open, "nats", []column{colRate, colSystem, colDeliveries, colP50, colP99, colP99Ratio, colMax, colServerCPU}},
	"topics":       {"topics", closed, "nats", []column{colWindow, colSystem, colDeliveries, colRatio, colP50, colP99, colServerCPU, colClientCPU}},
	"topics rates": {"topics", open, "nats", []column{colRate, colSystem, colDeliveries, colP50, colP99, colP99Ratio, colMax, colServerCPU}},
	"connections":  {"connections", nil, "nats", []column{colConnections, colSystem, colMemory, colBefore, colConnectCPU, colP50, colP99, colServerCPU}},
	"echo":         {"echo", nil, "grpc-echo", []column{colSystem, colMean, colP50, colP99, colP99Ratio, colMax}},
	"durable":      {"durable", nil, "jetstream", []column{colWindow, colSystem, colDeliveries, colRatio, colP50, colP99, colServerCPU}},
	"publish":      {"publish", nil, "grpc-echo", []column{colSystem, colDeliveries, colRatio, colP50, colP99, colServerCPU, colClientCPU}},
	"sdk":          {"sdk", nil, "nats-sdk", []column{colWindow, colSystem, colDeliveries, colRatio, colP99, colServerCPU, colClientCPU}},
	"founding":     {"founding", nil, "", []column{colConnections, colSystem, colMean, colP99, colCores, colMemory}},
	"compression":  {"compression", nil, "runnel-identity", []column{colContent, colWindow, colSystem, colDeliveries, colRatio, colBytes, colServerCPU, colClientCPU}},
}

// fill replaces the tables of a document.
func fill(name string, results []*load.Result) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var out []string
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		out = append(out, lines[i])
		mark, ok := strings.CutPrefix(lines[i], tableMark)
		if !ok {
			continue
		}
		mark = strings.TrimSuffix(mark, " -->")
		t, known := tables[mark]
		end := slices.Index(lines[i:], tableEnd)
		if !known || end < 0 {
			return fmt.Errorf("%s, line %d: there is no table %q, or no line %q behind it", name, i+1, mark, tableEnd)
		}
		if text := t.text(results); text != nil {
			out = append(out, text...)
			i += end - 1
		}
	}
	return os.WriteFile(name, []byte(strings.Join(out, "\n")), 0o644)
}

// text is the table as Markdown; nil if there are no results for it.
func (t *table) text(results []*load.Result) []string {
	var rows [][]string
	lost := int64(0)
	for _, r := range results {
		if r.Scenario != t.scenario || t.rows != nil && !t.rows(r) {
			continue
		}
		lost += r.Lost
		var row []string
		for _, c := range t.columns {
			row = append(row, c.of(r, t.referenceOf(r, results)))
		}
		rows = append(rows, row)
	}
	if rows == nil {
		return nil
	}
	text := []string{"", "|", "|"}
	for _, c := range t.columns {
		text[1] += " " + strings.ReplaceAll(c.head, "%s", t.reference) + " |"
		text[2] += "---|"
	}
	for _, row := range rows {
		text = append(text, "| "+strings.Join(row, " | ")+" |")
	}
	if lost != 0 {
		text = append(text, "", fmt.Sprintf("%d deliveries were lost, in all rounds together.", lost))
	}
	return append(text, "")
}

func (t *table) referenceOf(r *load.Result, results []*load.Result) *load.Result {
	i := slices.IndexFunc(results, func(o *load.Result) bool {
		return o.System == t.reference && o.Scenario == r.Scenario && o.Subscribers == r.Subscribers && o.Window == r.Window && o.Rate == r.Rate && o.Content == r.Content
	})
	if i < 0 {
		return nil
	}
	return results[i]
}

func cellOf(v *float64) string {
	if v == nil {
		return "-"
	}
	return short(*v)
}

func percent(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f %%", *v*100)
}

func ratio(v *float64, ref *load.Result, of func(*load.Result) *float64) string {
	if v == nil || ref == nil || of(ref) == nil || *of(ref) == 0 || math.IsNaN(*v) {
		return "-"
	}
	return fmt.Sprintf("%.2f", *v / *of(ref))
}
