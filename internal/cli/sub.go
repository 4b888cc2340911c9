package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

var policies = map[string]runnel.Policy{
	"catch-up": runnel.CatchUp, "drop-oldest": runnel.DropOldest, "conflate": runnel.Conflate, "disconnect": runnel.Disconnect,
}

func (a *app) sub() *cobra.Command {
	var (
		from, policy      string
		interval, timeout time.Duration
		maxLag            uint32
		asJSON            bool
		count             uint64
	)
	c := &cobra.Command{
		Use:   "sub PATTERN...",
		Short: "Follow topics and print their events",
		Long: "Follow one or more patterns until interrupted. A lost connection is resumed without a loss.\n" +
			"In patterns * stands for one token and > for one or more at the end; quote them for the shell.",
		Example: "  runnel sub 'quotes.>' --from last\n  runnel sub logs.app --from -100 --json",
		Args:    args(1, -1, "one or more patterns"),
	}
	f := c.Flags()
	f.StringVar(&from, "from", "new", "new, last, earliest, OFFSET, EPOCH:OFFSET, an RFC 3339 time, or -N for the last N")
	f.StringVar(&policy, "policy", "", "when this reader is too slow: catch-up, drop-oldest, conflate, disconnect (default the namespace's)")
	f.DurationVar(&interval, "interval", 0, "conflate: shortest time between batches")
	f.Uint32Var(&maxLag, "max-lag", 0, "drop-oldest, disconnect: events behind before the policy acts (default the namespace's)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	f.Uint64Var(&count, "count", 0, "end after this many events; 0: never")
	f.DurationVar(&timeout, "timeout", 0, "end after this time, with exit code 1 if --count was not reached")
	c.RunE = func(c *cobra.Command, args []string) error {
		start, err := parseFrom(from)
		if err != nil {
			return err
		}
		opts := []runnel.SubscribeOption{runnel.From(start), runnel.MaxLag(maxLag), runnel.MinInterval(uint32(interval.Milliseconds()))}
		if policy != "" {
			p, ok := policies[policy]
			if !ok {
				return usagef("bad --policy %q: it must be catch-up, drop-oldest, conflate or disconnect", policy)
			}
			opts = append(opts, runnel.Overflow(p))
		}
		if interval < 0 || timeout < 0 {
			return usagef("--interval and --timeout cannot be negative")
		}
		ctx := c.Context()
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		n, err := a.follow(ctx, args, opts, newPrinter(a.out, asJSON), count)
		if timeout > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			if count == 0 {
				return nil
			}
			return fmt.Errorf("%d of %d events came within %v", n, count, timeout)
		}
		return err
	}
	return c
}

// arrival is what one subscription yields.
type arrival struct {
	event runnel.Event
	err   error
}

// follow prints events of all patterns until count have come.
func (a *app) follow(ctx context.Context, patterns []string, opts []runnel.SubscribeOption, p *printer, count uint64) (n uint64, err error) {
	client, err := a.dial()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	s, err := client.Session(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	arrivals := make(chan arrival, 256)
	for _, pattern := range patterns {
		sub, err := s.Subscribe(ctx, pattern, opts...)
		if err != nil {
			return 0, err
		}
		group.Go(func() {
			for e, err := range sub.Events(ctx) {
				select {
				case arrivals <- arrival{e, err}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	defer func() { err = errors.Join(err, p.flush()) }()
	for count == 0 || n < count {
		var got arrival
		select {
		case got = <-arrivals:
		default: // idle: show what there is
			if err := p.flush(); err != nil {
				return n, err
			}
			select {
			case got = <-arrivals:
			case <-ctx.Done():
				return n, nil
			}
		}
		var e *runnel.Error
		switch {
		case got.err == nil:
			n++
			err = p.event(got.event)
		case errors.As(got.err, &e) && !e.Terminal():
			err = p.notice(e.Notice)
		case ctx.Err() != nil:
			return n, nil
		default:
			err = got.err
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
