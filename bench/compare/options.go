package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnelhq/runnel/bench/system"
)

// options are the command line.
type options struct {
	json        bool
	scenario    string
	systems     []*system.System
	windows     []int
	rates       []float64
	subscribers []int
	publishers  int
	payload     int
	rounds      int
	warmup      time.Duration
	duration    time.Duration
}

// all is the name of every scenario together.
const all = "all"

func parse(args []string, help io.Writer) (*options, error) {
	o := &options{}
	var systems, windows, rates, subscribers string
	var everything bool
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.BoolVar(&everything, "all", false, "compare everything; --scenario all")
	f.StringVar(&o.scenario, "scenario", "fanout", "what to compare, or all")
	f.StringVar(&systems, "systems", "", "which systems, separated by commas (default the scenario's)")
	f.StringVar(&windows, "windows", "", "closed loops: events in flight per subscriber, separated by commas (default the scenario's, if there are no --rates)")
	f.StringVar(&rates, "rates", "", "open loops: events published per second, separated by commas")
	f.StringVar(&subscribers, "subscribers", "", "how many, separated by commas (default the scenario's)")
	f.IntVar(&o.publishers, "publishers", 64, "publish: how many wait for their own acknowledgements")
	f.IntVar(&o.payload, "payload", 136, "bytes of each event")
	f.IntVar(&o.rounds, "rounds", 3, "how often each system is measured, in turn; the medians are shown")
	f.DurationVar(&o.warmup, "warmup", time.Second, "load before each measurement")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "each measurement")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(f, help)
			return nil, err
		}
		return nil, usageError{err}
	}
	if f.NArg() > 0 {
		return nil, usageError{fmt.Errorf("unknown argument %q", f.Arg(0))}
	}
	if everything {
		o.scenario = all
	}
	var err1, err2, err3, err4 error
	o.windows, err1 = numbers("windows", windows, 1<<20, strconv.Atoi)
	o.rates, err2 = numbers("rates", rates, 10_000_000, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) })
	o.subscribers, err3 = numbers("subscribers", subscribers, maxSubscribers, strconv.Atoi)
	o.systems, err4 = find(systems)
	for _, err := range []error{err1, err2, err3, err4, o.check()} {
		if err != nil {
			return nil, usageError{err}
		}
	}
	return o, nil
}

func usage(f *flag.FlagSet, to io.Writer) {
	fmt.Fprintln(to, "Usage: go run ./compare [flags]\n\nScenarios:")
	for _, s := range scenarios {
		fmt.Fprintf(to, "  %-12s %s\n", s.name, s.help)
	}
	fmt.Fprintln(to, "\nSystems:")
	for _, s := range system.All() {
		fmt.Fprintf(to, "  %-16s %s\n", s.Name, s.Help)
	}
	fmt.Fprintln(to, "\nFlags:")
	f.SetOutput(to)
	f.PrintDefaults()
}

func find(list string) (systems []*system.System, err error) {
	for _, name := range fields(list) {
		s, err := system.Find(name)
		if err != nil {
			return nil, err
		}
		systems = append(systems, s)
	}
	return systems, nil
}

func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func numbers[T int | float64](name, list string, most T, parse func(string) (T, error)) (all []T, err error) {
	for _, s := range fields(list) {
		n, err := parse(s)
		if err != nil || !(n > 0 && n <= most) { // so that NaN is refused too
			return nil, fmt.Errorf("--%s: %q is not a number above 0 and up to %v", name, s, most)
		}
		all = append(all, n)
	}
	return all, nil
}

// check says in one line what cannot be.
func (o *options) check() error {
	var s *scenario
	if i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == o.scenario }); i >= 0 {
		s = &scenarios[i]
	}
	switch {
	case s == nil && o.scenario != all:
		return fmt.Errorf("there is no scenario %q; see --help", o.scenario)
	case s == nil && len(o.systems)+len(o.windows)+len(o.rates)+len(o.subscribers) > 0:
		return errors.New("--systems, --windows, --rates and --subscribers are for one --scenario; all have their own")
	case o.publishers < 1 || o.publishers > 10_000:
		return fmt.Errorf("--publishers %d is not between 1 and 10000", o.publishers)
	case o.payload < 8 || o.payload > 1<<20:
		return fmt.Errorf("--payload %d is not between 8 and %d", o.payload, 1<<20)
	case o.rounds < 1 || o.rounds > 1000:
		return fmt.Errorf("--rounds %d is not between 1 and 1000", o.rounds)
	case o.duration <= 0 || o.warmup < 0 || o.duration > time.Hour || o.warmup > time.Hour:
		return errors.New("--duration and --warmup must be positive and at most an hour")
	}
	if s == nil {
		return nil
	}
	if s.acked && len(o.windows)+len(o.rates)+len(o.subscribers) > 0 {
		return fmt.Errorf("scenario %s has --publishers, and neither windows nor rates nor subscribers", s.name)
	}
	for _, n := range o.subscribers {
		if n > perProcess && !s.cells {
			return fmt.Errorf("--subscribers %d: scenario %s has one server process, which carries at most %d", n, s.name, perProcess)
		}
	}
	for _, sys := range o.systems {
		if !s.takes(sys) {
			return fmt.Errorf("system %s takes no part in scenario %s", sys.Name, s.name)
		}
	}
	return nil
}
