package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/bench/wire"
	"github.com/runnelhq/runnel/internal/load"
)

// beCompare in the environment makes the test binary the command.
const beCompare = "BENCH_BE_COMPARE"

func TestMain(m *testing.M) {
	if os.Getenv(beCompare) != "" || len(os.Args) == 3 && os.Args[1] == cellFlag {
		main()
	}
	system.MaybeServe()
	code := m.Run()
	system.Cleanup()
	os.Exit(code)
}

// tiny is a workload that is over at once.
func tiny(scenario string) workload {
	w := workload{Scenario: scenario, Subscribers: 5, Payload: 136, Warmup: 50 * time.Millisecond, Duration: 200 * time.Millisecond, PerProcess: 16_000}
	switch scenario {
	case "echo":
		w.Subscribers, w.Rate = 1, 500
	case "publish":
		w.Subscribers, w.Publishers, w.Window = 0, 4, 1
	case "founding":
		w.Rate = 50
	default:
		w.Window = 8
	}
	return w
}

func measured(t *testing.T, w workload, s *system.System) *load.Result {
	t.Helper()
	r, err := w.run(t.Context(), s)
	if err != nil {
		t.Fatalf("%s, %v: %v", s.Name, &w, err)
	}
	if r.DeliveriesPerSecond <= 0 || r.P50 == nil || r.P99 == nil || r.Max == nil || r.Mean == nil || r.ServerCPU == nil || r.ClientCPU == nil || r.Lost != 0 || r.Noticed != 0 {
		b, err := json.Marshal(r)
		t.Errorf("%s, %v: %s, %v", s.Name, &w, b, err)
	}
	return r
}

// Every system does what it takes part in, and loses nothing.
func TestEverySystem(t *testing.T) {
	for _, s := range system.All() {
		t.Run(s.Name, func(t *testing.T) {
			took := 0
			for _, sc := range scenarios {
				if !sc.takes(s) || !slices.Contains([]string{"fanout", "echo", "publish", "topics", "compression"}, sc.name) {
					continue
				}
				took++
				measured(t, tiny(sc.name), s)
			}
			if took == 0 {
				t.Error("it takes part in nothing")
			}
		})
	}
}

// Memory is measured where there are enough clients, before a collection and after.
func TestMemory(t *testing.T) {
	for _, name := range []string{"runnel-session", "nats"} {
		s, err := system.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		w := tiny("connections")
		w.Subscribers, w.Window, w.Rate = 400, 0, 2000
		r := measured(t, w, s)
		if r.RSSPerClient == nil || *r.RSSPerClient < 4<<10 || *r.RSSPerClient > 1<<20 || r.RSSBeforeGC == nil || r.ConnectCPU <= 0 || r.Connect <= 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// A load that one process cannot carry is spread over several, and added up.
func TestCells(t *testing.T) {
	s, err := system.Find("runnel-session")
	if err != nil {
		t.Fatal(err)
	}
	for _, scenario := range []string{"founding", "connections"} {
		w := tiny(scenario)
		w.Subscribers, w.PerProcess, w.Window, w.Rate = 5, 3, 0, 50
		if r := measured(t, w, s); r.Processes != 2 || r.Subscribers != 5 || r.Rate != 50 {
			t.Errorf("%s: %+v", scenario, r)
		}
	}
}

// A cell that fails is reported with what it has said.
func TestCellFails(t *testing.T) {
	w := tiny("founding")
	w.PerProcess = 3
	if _, err := w.run(t.Context(), &system.System{Name: "nobody"}); err == nil || !strings.Contains(err.Error(), `no system "nobody"`) {
		t.Errorf("%v", err)
	}
}

func TestCommand(t *testing.T) {
	var out, progress bytes.Buffer
	args := []string{"--json", "--systems", "tcp,pollall", "--windows", "4", "--rates", "100", "--subscribers", "2,3", "--rounds", "2", "--duration", "50ms", "--warmup", "0s"}
	if code := command(t.Context(), args, &out, &progress); code != 0 {
		t.Fatalf("exit code %d: %s", code, &progress)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		var r load.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for _, name := range []string{"system", "scenario", "subscribers", "window", "rate", "deliveries_per_s", "p50_ms", "p99_ms", "max_ms",
			"server_cpu_s_per_million", "client_cpu_s_per_million", "rss_bytes_per_client", "lost"} {
			if !strings.Contains(line, `"`+name+`":`) {
				t.Errorf("there is no %s in %s", name, line)
			}
		}
		w := workload{Scenario: r.Scenario, Subscribers: r.Subscribers, Window: r.Window, Rate: r.Rate}
		got = append(got, r.System+": "+w.String())
	}
	want := []string{
		"tcp: fanout, 2 subscribers, window 4", "pollall: fanout, 2 subscribers, window 4",
		"tcp: fanout, 2 subscribers, 100 events/s", "pollall: fanout, 2 subscribers, 100 events/s",
		"tcp: fanout, 3 subscribers, window 4", "pollall: fanout, 3 subscribers, window 4",
		"tcp: fanout, 3 subscribers, 100 events/s", "pollall: fanout, 3 subscribers, 100 events/s",
	}
	if !slices.Equal(got, want) {
		t.Errorf("results\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The systems take turns.
	if i, j := strings.Index(progress.String(), "pollall, round 1 of 2"), strings.Index(progress.String(), "tcp, round 2 of 2"); i < 0 || j < i {
		t.Errorf("progress\n%s", &progress)
	}
	out.Reset()
	args = []string{"--systems", "tcp", "--windows", "4", "--subscribers", "2", "--rounds", "1", "--duration", "50ms"}
	if code := command(t.Context(), args, &out, &progress); code != 0 || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), "deliveries/s") {
		t.Errorf("exit code %d: %s", code, &out)
	}
}

func TestBadCommands(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--scenario storm", `there is no scenario "storm"`},
		{"--systems runnel,kafka", `there is no system "kafka"`},
		{"--windows 0", `--windows: "0" is not a number above 0`},
		{"--windows 16,many", `"many" is not a number`},
		{"--windows 99999999999", `--windows: "99999999999"`},
		{"--rates NaN", `--rates: "NaN" is not a number`},
		{"--rates -5", `--rates: "-5" is not a number`},
		{"--rates 1e300", `--rates: "1e300" is not a number`},
		{"--subscribers 0", `--subscribers: "0" is not a number`},
		{"--subscribers 20000", "carries at most 16000"},
		{"--payload 4", "--payload 4 is not between 8 and"},
		{"--rounds 0", "--rounds 0 is not between 1 and"},
		{"--duration 0s", "--duration and --warmup must be positive"},
		{"--duration 3", "invalid value"},
		{"--publishers 0", "--publishers 0 is not between"},
		{"--scenario publish --windows 3", "has --publishers, and neither windows"},
		{"--scenario sdk --systems tcp", "system tcp takes no part in scenario sdk"},
		{"--scenario fanout --systems grpc-echo", "system grpc-echo takes no part in scenario fanout"},
		{"--all --systems tcp", "all have their own"},
		{"--nonsense", "not defined: -nonsense"},
		{"fanout", `unknown argument "fanout"`},
	} {
		var out, errs bytes.Buffer
		code := command(t.Context(), strings.Fields(c.args), &out, &errs)
		if code != 2 || out.Len() > 0 || strings.Count(errs.String(), "\n") != 1 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%s: exit code %d, %q, %q; want %q", c.args, code, &out, &errs, c.want)
		}
	}
	var out, errs bytes.Buffer
	if code := command(t.Context(), []string{"--help"}, &out, &errs); code != 0 || !strings.Contains(errs.String(), "jetstream-sync") || !strings.Contains(errs.String(), "founding") {
		t.Errorf("--help: exit code %d, %s", code, &errs)
	}
}

// Every scenario's own systems take part in it.
func TestScenarios(t *testing.T) {
	o := &options{scenario: all, payload: 136, publishers: 64}
	seen := map[string]bool{}
	for _, task := range o.tasks() {
		seen[task.Scenario] = true
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == task.Scenario })
		for _, s := range task.systems {
			if !scenarios[i].takes(s) {
				t.Errorf("%s does not take %s", task.Scenario, s.Name)
			}
		}
	}
	if len(seen) != len(scenarios) {
		t.Errorf("%d of %d scenarios have tasks", len(seen), len(scenarios))
	}
}

func TestMedianAndMerged(t *testing.T) {
	p := func(v float64) *float64 { return &v }
	open := []*load.Result{{P99: p(3), Lost: 1}, {P99: p(1), Lost: 2}, {P99: p(2)}}
	if m := median(open); *m.P99 != 2 || m.Lost != 3 {
		t.Errorf("open: %+v", m)
	}
	closed := []*load.Result{{Window: 1, DeliveriesPerSecond: 1}, {Window: 1, DeliveriesPerSecond: 1.4}, {Window: 1, DeliveriesPerSecond: 1.2}}
	if m := median(closed); m.DeliveriesPerSecond != 1.2 {
		t.Errorf("closed: %+v", m)
	}
	w := &workload{Subscribers: 10, Rate: 4}
	m := merged(w, []*load.Result{
		{DeliveriesPerSecond: 1, P50: p(1), P99: p(5), Max: p(9), Lost: 1, RSSPerClient: p(10), ServerCPU: p(2), Connect: 3},
		{DeliveriesPerSecond: 2, P50: p(3), P99: p(4), Max: p(10), Lost: 1, RSSPerClient: p(20), ServerCPU: p(4), Connect: 2}})
	if m.DeliveriesPerSecond != 3 || *m.P50 != 2 || *m.P99 != 5 || *m.Max != 10 || m.Lost != 2 || *m.RSSPerClient != 15 || *m.ServerCPU != 3 ||
		m.Connect != 3 || m.Subscribers != 10 || m.Rate != 4 || m.Processes != 2 || m.ClientCPU != nil {
		t.Errorf("merged: %+v", m)
	}
}

// What fails while an hour's load is under way is said at once.
func TestFailures(t *testing.T) {
	tcp, err := system.Find("tcp")
	if err != nil {
		t.Fatal(err)
	}
	publisher, parser := *tcp, *tcp
	publisher.Publisher = func(context.Context, string) (system.Publisher, error) { return failing{}, nil }
	parser.Parser = func(string) func(wire.Events) wire.Parser {
		return func(e wire.Events) wire.Parser { e.Ready(); return failing{} }
	}
	for want, s := range map[string]*system.System{"publishing: out of paper": &publisher, ": out of ink": &parser} { // while subscribing or receiving, whichever comes first
		w := tiny("fanout")
		w.Duration = time.Hour
		if _, err := w.run(t.Context(), s); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := tiny("fanout")
	w.Duration = time.Hour
	if _, err := w.run(ctx, tcp); err == nil {
		t.Error("a run goes on although it is interrupted")
	}
}

type failing struct{}

func (failing) Publish(string, []byte) error { return errors.New("out of paper") }
func (failing) Flush() error                 { return nil }
func (failing) Close() error                 { return nil }
func (failing) Feed([]byte) ([]byte, error)  { return nil, errors.New("out of ink") }
