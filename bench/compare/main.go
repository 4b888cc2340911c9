// Command compare loads Runnel and other systems in the same way, on the same machine, in turn, and prints what each has done. Each
// server is a process of its own; subscribers and publisher are this one. See ../README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

func main() {
	system.MaybeServe()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	system.Cleanup()
	var usage usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

type usageError struct{ error }

// options are the command line.
type options struct {
	json        bool
	scenario    string
	systems     []*system.System
	windows     []int
	rates       []float64
	subscribers int
	payload     int
	rounds      int
	warmup      time.Duration
	duration    time.Duration
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	var results []*load.Result
	for _, w := range o.workloads() {
		list, err := o.measure(ctx, w)
		for _, r := range list {
			if o.json {
				err = errors.Join(err, r.Write(os.Stdout))
			}
		}
		if err != nil {
			return err
		}
		results = append(results, list...)
	}
	if !o.json {
		return table(results)
	}
	return nil
}

// scenarios with the systems they compare unless told otherwise, and their load.
var scenarios = []struct {
	name, help, systems string
	subscribers         int
	windows             []int
	rates               []float64
}{
	{"fanout", "one topic, many subscribers", "tcp,runnel,nats,textbook,pollall,poll1", 1000, []int{256, 16, 1}, []float64{20, 50, 200}},
	{"topics", "many topics, one subscriber each", "tcp,runnel,nats,textbook", 1000, []int{4}, []float64{20_000}},
	{"connections", "idle subscribers, each on its own topic, and events to some", "tcp,runnel,nats,textbook,poll1", 5000, nil, []float64{2000}},
	{"echo", "one subscriber, little load: the delay alone", "tcp,runnel,nats,textbook", 1, nil, []float64{1000}},
	{"durable", "fan-out of events that are stored first", "runnel-disk,jetstream", 100, []int{256, 16}, nil},
}

func parse(args []string) (*options, error) {
	o := &options{}
	var names, list, windows, rates string
	for _, s := range scenarios {
		names += fmt.Sprintf("\n  %-12s %s", s.name, s.help)
	}
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.StringVar(&o.scenario, "scenario", "fanout", "what to compare, or all:"+names+"\n")
	f.StringVar(&list, "systems", "", "which systems, separated by commas (default the scenario's)")
	f.StringVar(&windows, "windows", "", "closed loops: events in flight per subscriber, separated by commas (default the scenario's, if there are no --rates)")
	f.StringVar(&rates, "rates", "", "open loops: events published per second, separated by commas")
	f.IntVar(&o.subscribers, "subscribers", 0, "how many (default the scenario's)")
	f.IntVar(&o.payload, "payload", 136, "bytes of each event")
	f.IntVar(&o.rounds, "rounds", 3, "how often each system is measured, in turn; the medians are shown")
	f.DurationVar(&o.warmup, "warmup", time.Second, "load before each measurement")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "each measurement")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, usageError{err}
	}
	if f.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unknown argument %q", f.Arg(0))}
	}
	var err1, err2 error
	o.windows, err1 = numbers("windows", windows, func(s string) (int, error) { return strconv.Atoi(s) })
	o.rates, err2 = numbers("rates", rates, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) })
	err := errors.Join(err1, err2)
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		s, e := system.Find(name)
		o.systems, err = append(o.systems, s), errors.Join(err, e)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return o, o.check()
}

func numbers[T int | float64](name, list string, parse func(string) (T, error)) (all []T, err error) {
	const most = 10_000_000
	for _, s := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		n, err := parse(s)
		if err != nil || n <= 0 || n > most {
			return nil, fmt.Errorf("--%s: %q is not a number from 1 to %d", name, s, most)
		}
		all = append(all, n)
	}
	return all, nil
}

func (o *options) check() error {
	known := o.scenario == "all"
	for _, s := range scenarios {
		known = known || s.name == o.scenario
	}
	const maxSubscribers = 16_000 // a process has 20,000 files
	switch {
	case !known:
		return usageError{fmt.Errorf("there is no scenario %q; see --help", o.scenario)}
	case o.subscribers < 0 || o.subscribers > maxSubscribers:
		return usageError{fmt.Errorf("--subscribers %d is not between 1 and %d", o.subscribers, maxSubscribers)}
	case o.payload < 8 || o.payload > 1<<20:
		return usageError{fmt.Errorf("--payload %d is not between 8 and %d", o.payload, 1<<20)}
	case o.rounds < 1 || o.rounds > 1000:
		return usageError{fmt.Errorf("--rounds %d is not between 1 and 1000", o.rounds)}
	case o.duration <= 0 || o.warmup < 0 || o.duration > time.Hour || o.warmup > time.Hour:
		return usageError{errors.New("--duration and --warmup must be positive and at most an hour")}
	}
	return nil
}

// task is a workload and the systems that it is for.
type task struct {
	workload
	systems []*system.System
}

// workloads lists all that is to be measured.
func (o *options) workloads() (list []task) {
	for _, s := range scenarios {
		if o.scenario != s.name && o.scenario != "all" {
			continue
		}
		systems := o.systems
		for _, name := range strings.Split(s.systems, ",") {
			if len(o.systems) == 0 {
				one, err := system.Find(name)
				if err != nil {
					panic(err) // the table above is wrong
				}
				systems = append(systems, one)
			}
		}
		windows, rates := s.windows, s.rates
		if len(o.windows)+len(o.rates) > 0 {
			windows, rates = o.windows, o.rates
		}
		w := workload{scenario: s.name, subscribers: s.subscribers, payload: o.payload, warmup: o.warmup, duration: o.duration}
		if o.subscribers > 0 {
			w.subscribers = o.subscribers
		}
		for _, n := range windows {
			w.window, w.rate = n, 0
			list = append(list, task{w, systems})
		}
		for _, rate := range rates {
			w.window, w.rate = 0, rate
			list = append(list, task{w, systems})
		}
	}
	return list
}

// measure runs a workload on its systems in turn, several rounds, and returns each system's median.
func (o *options) measure(ctx context.Context, t task) ([]*load.Result, error) {
	rounds := make([][]*load.Result, len(t.systems))
	for round := range o.rounds {
		for i, s := range t.systems {
			fmt.Fprintf(os.Stderr, "%s, window %d, rate %g, %d subscribers: %s, round %d of %d\n", t.scenario, t.window, t.rate, t.subscribers, s.Name, round+1, o.rounds)
			r, err := t.run(ctx, s)
			if err != nil {
				return nil, err
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

// median is the result with the median throughput of a closed loop, or the median 99th percentile of an open one; losses add up.
func median(all []*load.Result) *load.Result {
	lost := int64(0)
	for _, r := range all {
		lost += r.Lost
	}
	slices.SortFunc(all, func(a, b *load.Result) int {
		if a.Window > 0 || a.P99 == nil || b.P99 == nil {
			return int(a.DeliveriesPerSecond - b.DeliveriesPerSecond)
		}
		return int((*a.P99 - *b.P99) * 1e3)
	})
	m := *all[len(all)/2]
	m.Lost = lost
	return &m
}

// table prints results for people.
func table(results []*load.Result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "scenario\tsystem\tsubscribers\twindow\trate\tdeliveries/s\tp50 ms\tp99 ms\tmax ms\tserver CPU s/M\tclient CPU s/M\tkB/client\tlost\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%g\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", r.Scenario, r.System, r.Subscribers, r.Window, r.Rate, r.DeliveriesPerSecond,
			figure(r.P50, 1), figure(r.P99, 1), figure(r.Max, 1), figure(r.ServerCPU, 1), figure(r.ClientCPU, 1), figure(r.RSSPerClient, 1e-3), r.Lost)
	}
	return w.Flush()
}

func figure(v *float64, scale float64) string {
	if v == nil {
		return "-"
	}
	return strconv.FormatFloat(*v*scale, 'f', 3, 64)
}
