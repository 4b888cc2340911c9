// Command compare loads Runnel and other systems in the same way, on the same machine, in turn, and prints what each has done. Each
// server is a process of its own; subscribers and publisher are this one. See ../README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

func main() {
	system.MaybeServe()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	system.Cleanup()
	os.Exit(code)
}

type usageError struct{ error }

// command runs the command line and returns the exit code: 0, 1 for what has failed, 2 for what cannot be.
func command(ctx context.Context, args []string, out, progress io.Writer) int {
	if len(args) == 2 && args[0] == cellFlag {
		if err := serveCell(ctx, args[1], os.Stdin, out); err != nil {
			fmt.Fprintln(progress, err)
			return 1
		}
		return 0
	}
	var usage usageError
	switch err := run(ctx, args, out, progress); {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(progress, "compare:", err)
		return 2
	case ctx.Err() != nil:
		fmt.Fprintln(progress, "compare: interrupted")
		return 1
	default:
		fmt.Fprintln(progress, "compare:", err)
		return 1
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, progress)
	if err != nil {
		return err
	}
	var results []*load.Result
	for _, t := range o.tasks() {
		list, err := o.measure(ctx, t, progress)
		if err != nil {
			return err
		}
		for _, r := range list {
			if o.json {
				if err := r.Write(out); err != nil {
					return err
				}
			}
		}
		results = append(results, list...)
	}
	if !o.json {
		return table(out, results)
	}
	return nil
}

// measure runs a workload on its systems in turn, several rounds, and returns each system's median.
func (o *options) measure(ctx context.Context, t task, progress io.Writer) ([]*load.Result, error) {
	rounds := make([][]*load.Result, len(t.systems))
	for round := range o.rounds {
		for i, s := range t.systems {
			fmt.Fprintf(progress, "%v: %s, round %d of %d\n", &t.workload, s.Name, round+1, o.rounds)
			r, err := t.run(ctx, s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			rounds[i] = append(rounds[i], r)
		}
	}
	var list []*load.Result
	for _, all := range rounds {
		list = append(list, median(all))
	}
	return list, nil
}
