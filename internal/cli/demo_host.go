package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
	gopsnet "github.com/shirou/gopsutil/v4/net"
	"github.com/shirou/gopsutil/v4/process"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/runnelhq/runnel"
)

func cutDialer(c *cutter) runnel.Option {
	return runnel.WithDialOptions(grpc.WithContextDialer(c.dial))
}

// figures is one reading of this machine, by topic. What the system does not tell is left out.
func figures(ctx context.Context) map[string]any {
	all := map[string]any{}
	if p, err := cpu.PercentWithContext(ctx, 0, false); err == nil && len(p) == 1 {
		all["host.cpu"] = map[string]any{"percent": round(p[0]), "cores": runtime.NumCPU()}
	}
	if v, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		all["host.mem"] = map[string]any{"used_mib": v.Used >> 20, "total_mib": v.Total >> 20, "percent": round(v.UsedPercent)}
	}
	if l, err := load.AvgWithContext(ctx); err == nil {
		all["host.load"] = map[string]any{"1m": round(l.Load1), "5m": round(l.Load5), "15m": round(l.Load15)}
	}
	if u, err := disk.UsageWithContext(ctx, "/"); err == nil {
		all["host.disk"] = map[string]any{"path": u.Path, "used_gib": u.Used >> 30, "total_gib": u.Total >> 30, "percent": round(u.UsedPercent)}
	}
	if n, err := gopsnet.IOCountersWithContext(ctx, false); err == nil && len(n) == 1 {
		all["host.net"] = map[string]any{"sent_bytes": n[0].BytesSent, "received_bytes": n[0].BytesRecv}
	}
	return all
}

func round(f float64) float64 { return float64(int64(f*10+0.5)) / 10 }

// publishHost publishes the machine's figures once a second.
func (d *demo) publishHost(ctx context.Context) error {
	p, err := d.client.Publisher(ctx)
	if err != nil {
		return err
	}
	return everySecond(ctx, func() error {
		for topic, v := range figures(ctx) {
			if err := publishJSON(ctx, p, topic, v); err != nil {
				return err
			}
		}
		return nil
	})
}

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

// publisher is a Publisher or a Session.
type publisher interface {
	Publish(ctx context.Context, topic string, payload []byte, opts ...runnel.PublishOption) (*runnel.Receipt, error)
}

func publishJSON(ctx context.Context, p publisher, topic string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = p.Publish(ctx, topic, b, runnel.ContentType("application/json"))
	return err
}

// supervise keeps a worker process running: one that dies is noticed and replaced.
func (d *demo) supervise(ctx context.Context, number int) error {
	for ctx.Err() == nil {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c := exec.CommandContext(ctx, self, "demo-worker", "--server", d.addr)
		// The worker ends when its stdin does: also if this process is killed and cannot end it.
		in, err := c.StdinPipe()
		if err != nil {
			return err
		}
		c.Cancel = in.Close
		c.WaitDelay = 2 * time.Second
		c.Stderr = os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which ends its workers
		if err := c.Start(); err != nil {
			return err
		}
		d.out.printf("--- worker %d runs as pid %d", number, c.Process.Pid)
		err = c.Wait()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.out.printf("--- worker %d (pid %d) died (%v); starting another", number, c.Process.Pid, err)
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// worker is the hidden command that the demo's worker processes run.
func worker(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "demo-worker", Hidden: true, Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			var group errgroup.Group
			group.Go(func() error { return a.report(ctx) })
			// Nothing but its end ends a read of stdin, so it is read here, and the report elsewhere.
			_, _ = io.Copy(io.Discard, a.in)
			cancel()
			return group.Wait()
		},
	}
}

// report publishes this process's own figures once a second, over a session.
func (a *app) report(ctx context.Context) error {
	client, err := a.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Session(ctx)
	if err != nil {
		return err
	}
	me, err := process.NewProcess(int32(os.Getpid()))
	if err != nil {
		return err
	}
	began := time.Now()
	err = everySecond(ctx, func() error {
		v := map[string]any{"pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "uptime_s": int(time.Since(began).Seconds())}
		if m, err := me.MemoryInfoWithContext(ctx); err == nil {
			v["rss_mib"] = round(float64(m.RSS) / (1 << 20))
		}
		if p, err := me.PercentWithContext(ctx, 0); err == nil {
			v["cpu_percent"] = round(p)
		}
		return publishJSON(ctx, s, fmt.Sprintf("process.%d", os.Getpid()), v)
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
