package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/load"
	"github.com/runnelhq/runnel/internal/topic"
)

// benchFlags are the flags of bench.
type benchFlags struct {
	load.Options
	json, yes bool
}

func (a *app) bench() *cobra.Command {
	flags := benchFlags{}
	var names, help []string
	for _, s := range load.Scenarios() {
		names = append(names, s[0])
		help = append(help, fmt.Sprintf("  %-12s %s", s[0], s[1]))
	}
	c := &cobra.Command{
		Use:   "bench SCENARIO",
		Short: "Load a server and measure it",
		Long: "Makes load on a server and measures what comes of it. The scenarios:\n\n" + strings.Join(help, "\n") + "\n\n" +
			"With --window the loop is closed: no more than so many events are on their way to each subscriber, and the throughput is what\n" +
			"the system can do; delays are then those of a full system. With --rate events are due at fixed times, and each delay counts from\n" +
			"when the event was due, so that nothing that made it late is hidden. CPU and memory of the server are shown when it runs on\n" +
			"this machine. Topics lie under --topic; their namespace must exist (runnel serve --dev makes it). Several subscribers on a\n" +
			"machine that also runs the server share its CPU with it: compare ratios, not figures.",
		Example:   "  runnel bench fanout --subscribers 1000 --window 256\n  runnel bench echo --rate 1000 --json",
		ValidArgs: names,
		Args:      args(1, 1, "one of "+strings.Join(names, ", ")),
	}
	f := c.Flags()
	f.IntVar(&flags.Subscribers, "subscribers", 0, "how many (default the scenario's)")
	f.IntVar(&flags.Connections, "connections", 0, "that the subscribers share; 0: one each")
	f.IntVar(&flags.Window, "window", 0, "closed loop: events on their way to each subscriber")
	f.Float64Var(&flags.Rate, "rate", 0, "open loop: events published per second")
	f.DurationVar(&flags.Duration, "duration", 5*time.Second, "how long to measure")
	f.DurationVar(&flags.Warmup, "warmup", time.Second, "how long to load before that")
	f.IntVar(&flags.Payload, "payload", 136, "bytes of each event")
	f.StringVar(&flags.Topic, "topic", "", "where to publish (default bench.RANDOM)")
	f.IntVar(&flags.Events, "events", 0, "replay: how many to store and read")
	f.IntVar(&flags.Publishers, "publishers", 0, "publish: how many wait for their own acknowledgements")
	f.StringVar(&flags.Kill, "kill", "", "storm: kill (SIGKILL) the server at this address, one of --server, with the sessions it has; default: cut connections")
	f.IntVar(&flags.Live, "live", 0, "storm: subscribers that are not cut")
	f.BoolVar(&flags.SDK, "sdk", false, "receive with the Go SDK, each subscriber with a client of its own, in place of a client that only counts")
	f.BoolVar(&flags.json, "json", false, "print one JSON object")
	f.BoolVar(&flags.yes, "yes", false, "allow loading a server that is not on this machine's loopback")
	c.RunE = func(c *cobra.Command, args []string) error {
		flags.Scenario = args[0]
		if err := flags.check(a, names, func(name string) bool { return f.Changed(name) }); err != nil {
			return err
		}
		return a.measure(c.Context(), flags)
	}
	return c
}

func (flags *benchFlags) check(a *app, names []string, changed func(string) bool) error {
	flags.Compression, flags.Servers = a.compression, strings.Split(a.server, ",")
	if err := flags.Check(changed); err != nil {
		if strings.Contains(err.Error(), "no scenario") {
			return usagef("%w; say one of %s", err, strings.Join(names, ", "))
		}
		return usageError{err}
	}
	if flags.Topic == "" {
		flags.Topic = fmt.Sprintf("bench.%08x", rand.Uint32())
	}
	if _, err := topic.Parse(flags.Topic + ".1"); err != nil {
		return usageError{err}
	}
	if files := openFiles(); files > 0 && flags.sockets()+spareFiles > files {
		return usagef("%d connections need more files than the %d this process may open; share them with --connections, or raise the limit with ulimit -n", flags.sockets(), files)
	}
	for _, server := range flags.Servers {
		host, _, err := net.SplitHostPort(server)
		if err != nil || strings.Contains(server, "/") {
			return usagef("bench loads servers at addresses, and --server is %s; write HOST:PORT", server)
		}
		if !load.Loopback(host) && !flags.yes {
			return usagef("will not load %s, which is not on this machine's loopback: --yes allows it", server)
		}
	}
	if len(flags.Servers) > 1 && flags.Scenario != "storm" {
		return usagef("bench loads one server, and --server is %s; write HOST:PORT", a.server)
	}
	flags.Target, flags.Token = flags.Servers[0], a.token
	return nil
}

// spareFiles are those that are no connections.
const spareFiles = 64

func (flags *benchFlags) sockets() int {
	if n := flags.Connections; n > 0 && !flags.SDK {
		return n
	}
	return flags.Subscribers + flags.Live
}

func (a *app) measure(ctx context.Context, flags benchFlags) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	flags.Self = self
	bar := a.progress()
	flags.Progress = func(phase string, done float64) { bar.show("%s %s: %.0f %%", flags.Scenario, phase, 100*done) }
	res, err := load.Run(ctx, flags.Options)
	bar.clear()
	if away := (*load.UnreachableError)(nil); errors.As(err, &away) {
		return errors.New(a.unreachable(plainCause(away.Cause)))
	}
	if err != nil {
		return err
	}
	if flags.json {
		return res.Write(a.out)
	}
	return a.printResult(res)
}

// printResult prints what was measured, for people.
func (a *app) printResult(r *load.Result) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	maybe := func(name, format string, v *float64, scale float64) {
		if v != nil {
			line(name, format, *v*scale)
		}
	}
	line("scenario", "%s", r.Scenario)
	if r.Subscribers > 0 {
		line("subscribers", "%d", r.Subscribers)
	}
	switch {
	case r.Window > 0:
		line("load", "closed loop, window %d", r.Window)
	case r.Rate > 0:
		line("load", "open loop, %g events/s", r.Rate)
	}
	if s := r.Storm; s != nil {
		line("cut", "%d of %d sessions", s.Dropped, s.Sessions)
		line("back", "%d, p50 %.2f s, p99 %.2f s, last %.2f s", s.Back, s.BackP50, s.BackP99, s.BackMax)
		line("attempts", "%d connections, %d of them refused, at most %d taken in a second", s.Dials, s.Refused, s.Peak)
		maybe("others' p99 before", "%.3f ms", s.Before, 1)
		maybe("others' p99 meanwhile", "%.3f ms", s.During, 1)
		maybe("others' p99 after", "%.3f ms", s.After, 1)
		line("twice", "%d", s.Twice)
	} else {
		line("deliveries", "%s per second", thousands(r.DeliveriesPerSecond))
	}
	maybe("delay p50", "%.3f ms", r.P50, 1)
	maybe("delay p99", "%.3f ms", r.P99, 1)
	maybe("delay max", "%.3f ms", r.Max, 1)
	maybe("server CPU", "%.3f s per million deliveries", r.ServerCPU, 1)
	maybe("client CPU", "%.3f s per million deliveries", r.ClientCPU, 1)
	maybe("server memory", "%.1f kB per subscriber", r.RSSPerClient, 1e-3)
	if r.Connect > 0 {
		line("connecting", "%.2f s", r.Connect)
	}
	if r.Noticed > 0 {
		line("noticed", "%d dropped, conflated or gone, as the server said", r.Noticed)
	}
	line("lost", "%d", r.Lost)
	return w.Flush()
}

// thousands groups the digits of a number.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
