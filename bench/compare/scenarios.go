package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/runnelhq/runnel/bench/system"
)

// A process has 20,000 files on many machines, and load and server have one for each subscriber: beyond perProcess there are several
// of both.
const (
	perProcess     = 16_000
	maxSubscribers = 1_000_000
)

// scenario is a way to load systems.
type scenario struct {
	name, help string
	systems    string // compared unless told otherwise
	loads

	acked bool // publishers that wait for acknowledgements, and nobody subscribes
	full  bool // received by full clients
	echo  bool // one stream may both publish and receive
	bytes bool // what comes on the wire is counted, with each content
	cells bool // may be spread over several server processes
}

// loads is what a scenario does unless told otherwise: with each number of subscribers each loop.
type loads struct {
	subscribers []int
	windows     []int
	rates       []float64
}

var scenarios = []scenario{
	{name: "fanout", help: "one topic, many subscribers", systems: "tcp,runnel,nats,textbook,pollall,poll1",
		loads: loads{[]int{1000}, []int{256, 16, 1}, []float64{20, 50, 200}}},
	{name: "topics", help: "many topics, one subscriber each", systems: "tcp,runnel,nats,textbook,poll1",
		loads: loads{[]int{1000}, []int{4}, []float64{20_000}}},
	{name: "connections", help: "idle subscribers on topics of their own, and events to some of them", systems: "tcp,runnel,runnel-session,nats,textbook,poll1",
		loads: loads{[]int{10_000}, nil, []float64{2000}}, cells: true},
	{name: "echo", help: "one publisher, one subscriber, little load: the delay alone", systems: "tcp,runnel,runnel-session,nats,textbook,grpc-echo",
		loads: loads{[]int{1}, nil, []float64{500}}, echo: true},
	{name: "durable", help: "fan-out of events that are stored first", systems: "runnel-memory,runnel-os,runnel-disk,jetstream,jetstream-sync",
		loads: loads{[]int{100}, []int{256, 16}, nil}},
	{name: "publish", help: "publishers that each wait for their acknowledgement", systems: "grpc-echo,runnel,runnel-os,runnel-disk,jetstream,jetstream-sync",
		loads: loads{[]int{0}, []int{1}, nil}, acked: true},
	{name: "sdk", help: "fan-out to full clients in one process", systems: "runnel-sdk,runnel-generated,nats-sdk,textbook-sdk",
		loads: loads{[]int{100}, []int{256, 16}, nil}, full: true},
	{name: "founding", help: "long polling against bidirectional streams: two events a second to many connections", systems: "poll1,runnel-session,textbook",
		loads: loads{[]int{1000, 5000, 10_000, 30_000}, nil, []float64{2}}, cells: true},
	{name: "compression", help: "fan-out of ticks and of log lines, compressed for each subscriber", systems: "runnel-identity,runnel-gzip,runnel-zstd",
		loads: loads{[]int{20}, []int{256, 16}, nil}, bytes: true},
}

// takes says whether a system can be measured so.
func (s *scenario) takes(sys *system.System) bool {
	switch {
	case s.acked:
		return sys.Acked != nil
	case s.bytes:
		return sys.Compression != ""
	case sys.Compression != "":
		return false
	case s.full:
		return sys.Client != nil
	case s.cells && sys.Client != nil: // its clients would be what is measured
		return false
	case s.echo && sys.Duplex != nil:
		return true
	}
	return sys.Hello != nil || sys.Client != nil
}

// task is a workload and the systems that it is for.
type task struct {
	workload
	systems []*system.System
}

// contents lists what the payloads hold, in turn.
func (s *scenario) contents() []string {
	if !s.bytes {
		return []string{""}
	}
	return slices.Sorted(maps.Keys(contents))
}

// tasks lists all that is to be measured.
func (o *options) tasks() (list []task) {
	for _, s := range scenarios {
		if o.scenario != s.name && o.scenario != all {
			continue
		}
		systems := o.systems
		if len(systems) == 0 {
			var err error
			if systems, err = find(s.systems); err != nil {
				panic(err) // the table above is wrong
			}
		}
		l := s.loads
		if len(o.windows)+len(o.rates) > 0 {
			l.windows, l.rates = o.windows, o.rates
		}
		if len(o.subscribers) > 0 {
			l.subscribers = o.subscribers
		}
		for _, n := range l.subscribers {
			w := workload{Scenario: s.name, Subscribers: n, Payload: o.payload, Warmup: o.warmup, Duration: o.duration, PerProcess: perProcess}
			if s.acked {
				w.Publishers = o.publishers
			}
			if s.name == "founding" {
				w.Duration = max(w.Duration, 5*time.Second) // of few events, and all that they cost
			}
			for _, content := range s.contents() {
				w.Content = content
				for _, window := range l.windows {
					w.Window, w.Rate = window, 0
					list = append(list, task{w, systems})
				}
				for _, rate := range l.rates {
					w.Window, w.Rate = 0, rate
					list = append(list, task{w, systems})
				}
			}
		}
	}
	return list
}

// String is for the line of progress.
func (w *workload) String() string {
	switch {
	case w.Content != "":
		return fmt.Sprintf("%s of %s, %d subscribers, window %d, %g events/s", w.Scenario, w.Content, w.Subscribers, w.Window, w.Rate)
	case w.Publishers > 0:
		return fmt.Sprintf("%s, %d publishers", w.Scenario, w.Publishers)
	case w.Window > 0:
		return fmt.Sprintf("%s, %d subscribers, window %d", w.Scenario, w.Subscribers, w.Window)
	}
	return fmt.Sprintf("%s, %d subscribers, %g events/s", w.Scenario, w.Subscribers, w.Rate)
}
