package load

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel"
)

// liveCommand is what Options.Self is told to do for the process of Live.
const liveCommand = "bench-live"

// phases of a storm, as they are told to the process of the subscribers that are not cut.
const (
	calm = iota
	raging
	past
	over
)

var phases = [...]string{calm: "calm", raging: "storm", past: "past", over: "over"}

// lived is what that process has measured.
type lived struct {
	P99       [over]*float64 // by phase, in milliseconds
	Delivered int64
	Lost      int64
}

// live is that process: a publisher and the subscribers that are not cut.
type live struct {
	*run
	recorders [over]Recorder
	phase     atomic.Int32
}

// Live publishes to a topic at a rate and follows it with some subscribers, from a process of its own: so that what the others do in theirs,
// of which there may be thousands, does not show in its delays. It says when it is ready, is told of each phase by a line of
// commands, and at the end writes what it has measured. It is a part of scenario storm.
func Live(ctx context.Context, o Options, commands io.Reader, out io.Writer) error {
	o.Progress = func(string, float64) {}
	l := &live{run: &run{o: o}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	defer group.Wait() // what is wrong has ended the work, and is returned by it
	defer cancel()
	if err := l.watch(ctx, &group); err != nil {
		return err
	}
	publishing, stop := context.WithCancel(ctx)
	defer stop()
	var publisher errgroup.Group
	publisher.Go(func() error {
		return o.stampedEvents(publishing, o.Servers, func(int64) string { return o.Topic + ".live" }, o.Rate, func(int64) { l.published.Add(1) })
	})
	fmt.Fprintln(out, "ready")
	for lines := bufio.NewScanner(commands); l.phase.Load() != over && lines.Scan(); {
		for phase, word := range phases {
			if lines.Text() != word {
				continue
			}
			if phase == calm { // what came before was warming up
				l.recorders[calm].Reset()
			}
			l.phase.Store(int32(phase))
		}
	}
	l.phase.Store(over)
	stop()
	if err := publisher.Wait(); err != nil {
		return err
	}
	res := lived{Lost: l.settle(ctx, o.Live), Delivered: l.delivered.Load()}
	for i := range l.recorders {
		var one Result
		l.recorders[i].Fill(&one)
		res.P99[i] = one.P99
	}
	return json.NewEncoder(out).Encode(res)
}

func (l *live) watch(ctx context.Context, group *errgroup.Group) error {
	for range l.o.Live {
		c, err := l.o.sdkClient(l.o.Servers)
		if err != nil {
			return err
		}
		sub, err := c.Subscribe(ctx, l.o.Topic+".live", runnel.From(runnel.New()))
		if err != nil {
			c.Close()
			return err
		}
		var shards [over]*Shard
		for i := range shards {
			shards[i] = l.recorders[i].Shard()
		}
		group.Go(func() error {
			defer c.Close()
			for ev, err := range sub.Events(ctx) {
				if err != nil {
					return ended(ctx, err)
				}
				if phase := l.phase.Load(); phase < over {
					shards[phase].Record(sinceStamp(ev.Payload, time.Since(began)))
				}
				l.delivered.Add(1)
			}
			return nil
		})
	}
	return nil
}

// neighbour is the process of Live, from outside.
type neighbour struct {
	commands io.WriteCloser
	said     *bufio.Scanner
	wait     func() error
	end      sync.Once
}

// neighbour starts it, and returns when it is ready.
func (o *Options) neighbour(ctx context.Context, servers []string) (*neighbour, error) {
	n := &neighbour{}
	if o.Self == "" { // in this process: for tests
		in, commands := io.Pipe()
		said, out := io.Pipe()
		var group errgroup.Group
		mine := *o
		mine.Servers = servers
		group.Go(func() error {
			err := Live(ctx, mine, in, out)
			out.CloseWithError(err)
			return err
		})
		n.commands, n.said, n.wait = commands, bufio.NewScanner(said), group.Wait
	} else {
		c := exec.CommandContext(ctx, o.Self, liveCommand, "--server", strings.Join(servers, ","), "--topic", o.Topic, "--live", strconv.Itoa(o.Live),
			"--rate", strconv.FormatFloat(o.Rate, 'g', -1, 64), "--payload", strconv.Itoa(o.Payload), "--compression", o.Compression)
		c.Env = append(os.Environ(), "RUNNEL_TOKEN="+o.Token) // not for all to see
		var problem strings.Builder
		c.Stderr = &problem
		out, err := c.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if n.commands, err = c.StdinPipe(); err != nil {
			return nil, err
		}
		if err := c.Start(); err != nil {
			return nil, fmt.Errorf("cannot start the process of the subscribers that are not cut: %w", err)
		}
		n.said, n.wait = bufio.NewScanner(out), func() error {
			if err := c.Wait(); err != nil {
				return fmt.Errorf("the subscribers that are not cut: %s", strings.TrimPrefix(strings.TrimSpace(problem.String()), "runnel: "))
			}
			return nil
		}
	}
	if !n.said.Scan() {
		return nil, n.stop()
	}
	return n, nil
}

func (n *neighbour) tell(phase int) error {
	_, err := fmt.Fprintln(n.commands, phases[phase])
	return err
}

// stop ends it, if finish has not.
func (n *neighbour) stop() (err error) {
	n.end.Do(func() {
		n.commands.Close()
		for n.said.Scan() {
		}
		err = n.wait()
	})
	return err
}

// finish ends it and returns what it has measured.
func (n *neighbour) finish() (res lived, err error) {
	n.end.Do(func() {
		_ = n.tell(over) // if it is gone its end says why
		if n.said.Scan() {
			err = json.Unmarshal(n.said.Bytes(), &res)
		}
		n.commands.Close()
		for n.said.Scan() {
		}
		if failed := n.wait(); failed != nil {
			err = failed
		}
	})
	return res, err
}
