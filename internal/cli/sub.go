package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/internal/topic"
)

var policies = map[string]runnel.Policy{
	"catch-up": runnel.CatchUp, "drop-oldest": runnel.DropOldest, "conflate": runnel.Conflate, "disconnect": runnel.Disconnect,
}

// subFlags are the flags of sub.
type subFlags struct {
	from, policy      string
	interval, timeout time.Duration
	maxLag            uint32
	json              bool
	count             uint64
}

func (a *app) sub() *cobra.Command {
	var flags subFlags
	c := &cobra.Command{
		Use:   "sub PATTERN...",
		Short: "Follow topics and print their events",
		Long: "Follow one or more patterns until interrupted. A lost connection is resumed without a loss.\n" +
			"In patterns * stands for one token and > for one or more at the end; quote them for the shell.\n" +
			"Notices about events that were not delivered go to stderr, or with --json to stdout in their place.",
		Example: "  runnel sub 'quotes.>' --from last\n  runnel sub logs.app --from -100 --json",
		Args:    args(1, -1, "one or more patterns"),
	}
	f := c.Flags()
	f.StringVar(&flags.from, "from", "new", fromHelp)
	f.StringVar(&flags.policy, "policy", "", "when this reader is too slow: catch-up, drop-oldest, conflate, disconnect (default the namespace's)")
	f.DurationVar(&flags.interval, "interval", 0, "conflate: shortest time between batches")
	f.Uint32Var(&flags.maxLag, "max-lag", 0, "drop-oldest, disconnect: events behind before the policy acts (default the namespace's)")
	f.BoolVar(&flags.json, "json", false, "print one JSON object a line")
	f.Uint64Var(&flags.count, "count", 0, "end after this many events of all patterns together; 0: never")
	f.DurationVar(&flags.timeout, "timeout", 0, "end after this time, with exit code 1 if --count was not reached")
	c.RunE = func(c *cobra.Command, args []string) error {
		opts, err := flags.options()
		if err != nil {
			return err
		}
		if err := checkPatterns(args); err != nil {
			return err
		}
		return a.subscribe(c.Context(), args, opts, &flags)
	}
	return c
}

func checkPatterns(patterns []string) error {
	for _, s := range patterns {
		if _, err := topic.ParsePattern(s); err != nil {
			return usageError{err}
		}
	}
	return nil
}

func (flags *subFlags) options() ([]runnel.SubscribeOption, error) {
	start, err := parseFrom(flags.from)
	if err != nil {
		return nil, err
	}
	ms := flags.interval.Milliseconds()
	if flags.timeout < 0 || ms < 0 || ms > math.MaxUint32 {
		return nil, usagef("--interval and --timeout must be between 0 and 1000h")
	}
	opts := []runnel.SubscribeOption{runnel.From(start), runnel.MaxLag(flags.maxLag), runnel.MinInterval(uint32(ms))}
	if flags.policy != "" {
		p, ok := policies[flags.policy]
		if !ok {
			return nil, usagef("bad --policy %q: it must be catch-up, drop-oldest, conflate or disconnect", flags.policy)
		}
		opts = append(opts, runnel.Overflow(p))
	}
	return opts, nil
}

// subscribe follows until --count or --timeout is reached, or an interrupt: the usual end of something without end.
func (a *app) subscribe(ctx context.Context, patterns []string, opts []runnel.SubscribeOption, flags *subFlags) error {
	limited := ctx
	if flags.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, flags.timeout)
		defer cancel()
	}
	f := &follower{p: a.printer(flags.json), count: flags.count, out: a.out}
	err := f.run(limited, a, patterns, opts)
	err = errors.Join(err, f.p.flush())
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, context.DeadlineExceeded) && !f.connected:
		return errors.New(a.unreachable(fmt.Sprintf("no answer within %v", flags.timeout)))
	case errors.Is(err, context.DeadlineExceeded) && flags.count == 0:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%d of %d events came within %v; raise --timeout, or start earlier with --from", f.n, flags.count, flags.timeout)
	}
	return err
}

// follower prints what several subscriptions yield. Its goroutines end with run.
type follower struct {
	p         *printer
	count     uint64    // 0: no end
	out       io.Writer // where p writes to in the end
	connected bool
	n         uint64 // events so far
}

// arrival is what one subscription yields.
type arrival struct {
	event  runnel.Event
	notice *runnel.Notice
	err    error
}

// run ends without an error once count events have come.
func (f *follower) run(ctx context.Context, a *app, patterns []string, opts []runnel.SubscribeOption) error {
	client, err := a.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Session(ctx, a.outage(nil))
	if err != nil {
		return err
	}
	f.connected = true
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	arrivals := make(chan arrival, 256)
	show := func(got arrival) bool {
		select {
		case arrivals <- got:
			return true
		case <-ctx.Done():
			return false
		}
	}
	opts = append(opts, runnel.OnNotice(func(n runnel.Notice) { show(arrival{notice: &n}) }))
	for _, pattern := range patterns {
		sub, err := s.Subscribe(ctx, pattern, opts...)
		if err != nil {
			return err
		}
		group.Go(func() {
			for e, err := range sub.Events(ctx) {
				if !show(arrival{event: e, err: err}) {
					return
				}
			}
		})
	}
	return f.print(ctx, arrivals)
}

func (f *follower) print(ctx context.Context, arrivals <-chan arrival) error {
	// A reader that has gone away shows with the next write; when nothing is written for long, somebody has to look.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for f.count == 0 || f.n < f.count {
		var got arrival
		select {
		case got = <-arrivals:
		default: // idle: show what there is
			if err := f.p.flush(); err != nil {
				return err
			}
			select {
			case got = <-arrivals:
			case <-ctx.Done():
				return ctx.Err()
			case <-look.C:
				if file, ok := f.out.(*os.File); ok && abandoned(file) {
					return syscall.EPIPE
				}
				continue
			}
		}
		if err := f.take(&got); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) take(got *arrival) error {
	switch {
	case got.err != nil:
		return got.err
	case got.notice != nil:
		return f.p.notice(got.notice)
	}
	f.n++
	return f.p.event(&got.event)
}
