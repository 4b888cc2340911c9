package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

// More subscribers than a process has files are spread over cells: each is a process of this program with a part of the load, and a
// server of its own. They are loaded at the same time: each says that it is connected, waits for a line on stdin, measures, says what
// came of it, and keeps its connections until stdin ends.

// cellFlag makes this program a cell; behind it comes a cell as JSON.
const cellFlag = "-cell"

type cell struct {
	Workload workload
	System   string
	Runnel   string // the built server, so that only one is
}

const cellReady = "ready"

// serveCell is a cell's process.
func serveCell(ctx context.Context, text string, in io.Reader, out io.Writer) error {
	var c cell
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("not a cell: %w", err)
	}
	s, err := system.Find(c.System)
	if err != nil {
		return err
	}
	system.Use(c.Runnel)
	lines := bufio.NewReader(in)
	c.Workload.hold = func() error {
		if _, err := fmt.Fprintln(out, cellReady); err != nil {
			return err
		}
		_, err := lines.ReadString('\n')
		return err
	}
	res, err := c.Workload.runHere(ctx, s)
	if err != nil {
		return err
	}
	return errors.Join(res.Write(out), drain(lines))
}

func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// running is a cell as its parent sees it.
type running struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader
	err   strings.Builder
}

// runCells spreads a workload over as few cells as carry it.
func (w *workload) runCells(ctx context.Context, s *system.System) (*load.Result, error) {
	exe, err := system.Executable()
	if err != nil {
		return nil, err
	}
	n := (w.Subscribers + w.PerProcess - 1) / w.PerProcess
	cells := make([]*running, 0, n)
	defer func() {
		for _, c := range cells {
			c.in.Close()
			c.cmd.Process.Kill() // its server dies with it
			c.cmd.Wait()
		}
	}()
	for i := range n {
		part := cell{Workload: *w, System: s.Name, Runnel: exe}
		part.Workload.Subscribers = w.Subscribers*(i+1)/n - w.Subscribers*i/n
		if w.ownTopics() {
			part.Workload.Rate = w.Rate / float64(n)
		}
		c, err := startCell(ctx, part)
		if err != nil {
			return nil, err
		}
		cells = append(cells, c)
	}
	for _, c := range cells {
		if line, err := c.line(); err != nil || line != cellReady {
			return nil, fmt.Errorf("a process with a part of the load has failed: %s", c.why(err))
		}
	}
	results := make([]*load.Result, n)
	var group errgroup.Group
	for i, c := range cells {
		group.Go(func() error {
			_, err := fmt.Fprintln(c.in)
			line := ""
			if err == nil {
				line, err = c.line()
			}
			if err == nil {
				err = json.Unmarshal([]byte(line), &results[i])
			}
			if err != nil {
				return fmt.Errorf("a process with a part of the load has failed: %s", c.why(err))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return merged(w, results), nil
}

func startCell(ctx context.Context, part cell) (*running, error) {
	b, err := json.Marshal(part)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &running{cmd: exec.CommandContext(ctx, self, cellFlag, string(b))}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = &c.err
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.lines = bufio.NewReader(out)
	return c, c.cmd.Start()
}

func (c *running) line() (string, error) {
	s, err := c.lines.ReadString('\n')
	return strings.TrimSpace(s), err
}

// why waits for the cell to end, since only then all that it has said is there.
func (c *running) why(err error) string {
	c.in.Close()
	c.cmd.Wait()
	if said := strings.TrimSpace(c.err.String()); said != "" {
		return said
	}
	return fmt.Sprint(err)
}

// merged adds results up. Percentiles of several processes cannot be: the median is that of the medians' mean, and the others are the
// worst process's.
func merged(w *workload, parts []*load.Result) *load.Result {
	m := *parts[0]
	m.Subscribers, m.Rate, m.Processes = w.Subscribers, w.Rate, len(parts)
	m.DeliveriesPerSecond, m.Lost, m.Noticed, m.Connect, m.ConnectCPU = 0, 0, 0, 0, 0
	n := float64(len(parts))
	for _, p := range parts {
		m.DeliveriesPerSecond += p.DeliveriesPerSecond
		m.Lost += p.Lost
		m.Noticed += p.Noticed
		m.Connect = max(m.Connect, p.Connect)
		m.ConnectCPU += p.ConnectCPU / n
	}
	mean := func(of func(*load.Result) *float64) *float64 {
		sum := 0.0
		for _, p := range parts {
			if of(p) == nil {
				return nil
			}
			sum += *of(p) / n
		}
		return &sum
	}
	worst := func(of func(*load.Result) *float64) *float64 {
		most := 0.0
		for _, p := range parts {
			if of(p) == nil {
				return nil
			}
			most = max(most, *of(p))
		}
		return &most
	}
	m.Mean = mean(func(r *load.Result) *float64 { return r.Mean })
	m.P50 = mean(func(r *load.Result) *float64 { return r.P50 })
	m.P99 = worst(func(r *load.Result) *float64 { return r.P99 })
	m.Max = worst(func(r *load.Result) *float64 { return r.Max })
	m.ServerCPU = mean(func(r *load.Result) *float64 { return r.ServerCPU })
	m.ClientCPU = mean(func(r *load.Result) *float64 { return r.ClientCPU })
	m.RSSPerClient = mean(func(r *load.Result) *float64 { return r.RSSPerClient })
	m.RSSBeforeGC = mean(func(r *load.Result) *float64 { return r.RSSBeforeGC })
	return &m
}
