package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/runnelhq/runnel/internal/load"
)

// median is the result with the median throughput of a closed loop, or the median 99th percentile of an open one; losses add up.
func median(all []*load.Result) *load.Result {
	lost := int64(0)
	for _, r := range all {
		lost += r.Lost
	}
	slices.SortFunc(all, func(a, b *load.Result) int {
		if a.Window > 0 || a.P99 == nil || b.P99 == nil {
			return cmp.Compare(a.DeliveriesPerSecond, b.DeliveriesPerSecond)
		}
		return cmp.Compare(*a.P99, *b.P99)
	})
	m := *all[len(all)/2]
	m.Lost = lost
	return &m
}

// table prints results for people.
func table(to io.Writer, results []*load.Result) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "scenario\tsystem\tsubscribers\twindow\trate\tdeliveries/s\tmean ms\tp50 ms\tp99 ms\tmax ms\tserver CPU s/M\tclient CPU s/M\tkB/client\tlost\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%g\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", r.Scenario, r.System, r.Subscribers, r.Window, r.Rate, r.DeliveriesPerSecond,
			figure(r.Mean, 1), figure(r.P50, 1), figure(r.P99, 1), figure(r.Max, 1), figure(r.ServerCPU, 1), figure(r.ClientCPU, 1), figure(r.RSSPerClient, 1e-3), r.Lost)
	}
	return w.Flush()
}

func figure(v *float64, scale float64) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v*scale, 'f', 3, 64)
}
