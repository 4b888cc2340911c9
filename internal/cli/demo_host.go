package cli

import (
	"context"
	"encoding/json"
	"runtime"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
	"github.com/shirou/gopsutil/v4/net"

	"github.com/runnelhq/runnel"
)

// figure is a reading of one part of this machine.
type figure struct {
	topic string
	value any
}

type cpuFigure struct {
	Percent float64 `json:"percent"`
	Cores   int     `json:"cores"`
}

type memFigure struct {
	Percent float64 `json:"percent"`
	UsedMiB uint64  `json:"used_mib"`
	AllMiB  uint64  `json:"total_mib"`
}

type loadFigure struct {
	Load1  float64 `json:"1m"`
	Load5  float64 `json:"5m"`
	Load15 float64 `json:"15m"`
}

type diskFigure struct {
	Percent float64 `json:"percent"`
	UsedGiB float64 `json:"used_gib"`
	AllGiB  float64 `json:"total_gib"`
}

type netFigure struct {
	In  float64 `json:"in_kib_s"`
	Out float64 `json:"out_kib_s"`
}

// hostReader reads this machine's figures. It belongs to one goroutine.
type hostReader struct {
	at      time.Time // of the last reading
	in, out uint64    // bytes over the network until then
}

// read is one reading. What the system does not tell is left out.
func (h *hostReader) read(ctx context.Context) []figure {
	var all []figure
	if p, err := cpu.PercentWithContext(ctx, 0, false); err == nil && len(p) == 1 { // since the last reading
		all = append(all, figure{"host.cpu", cpuFigure{round(p[0]), runtime.NumCPU()}})
	}
	if v, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		all = append(all, figure{"host.mem", memFigure{round(v.UsedPercent), v.Used >> 20, v.Total >> 20}})
	}
	if l, err := load.AvgWithContext(ctx); err == nil {
		all = append(all, figure{"host.load", loadFigure{round(l.Load1), round(l.Load5), round(l.Load15)}})
	}
	if u, err := disk.UsageWithContext(ctx, rootDir); err == nil {
		all = append(all, figure{"host.disk", diskFigure{round(u.UsedPercent), gib(u.Used), gib(u.Total)}})
	}
	if n, err := net.IOCountersWithContext(ctx, false); err == nil && len(n) == 1 {
		all = append(all, figure{"host.net", h.network(n[0].BytesRecv, n[0].BytesSent, time.Now())})
	}
	return all
}

// network turns counters into rates; the first reading has none to compare with.
func (h *hostReader) network(in, out uint64, now time.Time) netFigure {
	var f netFigure
	if s := now.Sub(h.at).Seconds(); !h.at.IsZero() && s > 0 && in >= h.in && out >= h.out {
		f = netFigure{round(float64(in-h.in) / s / 1024), round(float64(out-h.out) / s / 1024)}
	}
	h.at, h.in, h.out = now, in, out
	return f
}

func round(f float64) float64 { return float64(int64(f*10+0.5)) / 10 }

func gib(bytes uint64) float64 { return round(float64(bytes) / (1 << 30)) }

// publishHost publishes the machine's figures once a second.
func (d *demo) publishHost(ctx context.Context) error {
	s, err := d.client.Session(ctx)
	if err != nil {
		return err
	}
	var h hostReader
	return everySecond(ctx, func() error {
		for _, f := range h.read(ctx) {
			if err := publishJSON(ctx, s, f.topic, f.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// everySecond calls f at once and then once a second, until it fails or ctx ends.
func everySecond(ctx context.Context, f func() error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func publishJSON(ctx context.Context, s *runnel.Session, topic string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.Publish(ctx, topic, b, runnel.ContentType("application/json"))
	return err
}
