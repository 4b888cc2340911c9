package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/shirou/gopsutil/v4/process"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel"
)

// workerCommand is the hidden command that the worker processes run.
const workerCommand = "demo-worker"

// supervise keeps a worker process running: one that dies is noticed and replaced.
func (d *demo) supervise(ctx context.Context, number int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for {
		pid, err := d.work(ctx, self, number)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if pid == 0 {
			return fmt.Errorf("cannot start a worker: %w", err)
		}
		reason := "it ended by itself"
		if err != nil {
			reason = err.Error()
		}
		d.board.forget(processTopic(pid))
		d.board.say("* worker %d (pid %d) is dead (%s); starting another", number, pid, reason)
		pause := time.NewTimer(500 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// work runs one worker process to its end. The pid is 0 if it could not be started.
func (d *demo) work(ctx context.Context, self string, number int) (pid int, err error) {
	c := exec.CommandContext(ctx, self, workerCommand, "--server", d.addr)
	c.Args[0] = "runnel"
	// A worker ends when its stdin does: also if this process is killed and can end nothing any more.
	in, err := c.StdinPipe()
	if err != nil {
		return 0, err
	}
	c.Cancel = in.Close
	c.WaitDelay = 2 * time.Second
	c.Stderr = os.Stderr
	detach(c) // Ctrl-C is for the demo, which ends its workers
	if err := c.Start(); err != nil {
		return 0, err
	}
	d.board.say("* worker %d runs as pid %d", number, c.Process.Pid)
	return c.Process.Pid, c.Wait()
}

func processTopic(pid int) string { return fmt.Sprintf("process.%d", pid) }

// demoWorker is what a worker process runs, until its stdin ends or its session does.
func (a *app) demoWorker() *cobra.Command {
	return &cobra.Command{
		Use: workerCommand, Hidden: true, Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			var group errgroup.Group
			group.Go(func() error {
				defer cancel()
				return a.report(ctx)
			})
			_, _ = io.Copy(io.Discard, &patientReader{ctx, a.in}) // its end is all that matters
			cancel()
			return group.Wait()
		},
	}
}

// processFigure is what a worker reports about itself.
type processFigure struct {
	PID    int     `json:"pid"`
	CPU    float64 `json:"cpu"`
	RSS    float64 `json:"rss_mib"`
	Uptime int     `json:"up_s"`
}

// report publishes this process's own figures once a second, over a session, until ctx ends.
func (a *app) report(ctx context.Context) error {
	client, err := a.dial(runnel.WithClientID(fmt.Sprintf("worker-%d", os.Getpid())))
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Session(ctx)
	if err != nil {
		return err
	}
	me, err := process.NewProcessWithContext(ctx, int32(os.Getpid()))
	if err != nil {
		return err
	}
	began := time.Now()
	err = everySecond(ctx, func() error {
		f := processFigure{PID: os.Getpid(), Uptime: int(time.Since(began).Seconds())}
		if m, err := me.MemoryInfoWithContext(ctx); err == nil {
			f.RSS = round(float64(m.RSS) / (1 << 20))
		}
		if p, err := me.PercentWithContext(ctx, 0); err == nil {
			f.CPU = round(p)
		}
		return publishJSON(ctx, s, processTopic(f.PID), f)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
