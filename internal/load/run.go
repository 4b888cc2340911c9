package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel/internal/compress"
)

// Options say what load to make. Check fills in defaults.
type Options struct {
	Target   string // address of the server
	Token    string // bearer token; empty: none
	Scenario string
	Topic    string // of the events, or the beginning of topics

	Subscribers int
	Connections int           // that subscribers share; 0: one each
	Window      int           // closed loop: events in flight per subscriber
	Rate        float64       // open loop: events per second, if Window is 0
	Duration    time.Duration // measured, after Warmup
	Warmup      time.Duration
	Payload     int // bytes
	Events      int // replay: how many there are
	Publishers  int // publish: how many wait for their own acknowledgement
	SDK         bool
	Compression string   // gzip, zstd, or empty
	Servers     []string // storm: all of them, Target among them
	Kill        string   // storm: the one of Servers that is killed; empty: connections are cut
	Live        int      // storm: subscribers that are not cut
	Self        string   // storm: the runnel command, for a process of theirs; empty: they are in this one

	Progress func(phase string, done float64) // called now and then; done in 0..1
}

// scenario is a way to load a server, with what it takes for granted.
type scenario struct {
	name, help string
	defaults   Options
	run        func(*run, context.Context) (*Result, error)
}

var scenarios = []scenario{
	{"fanout", "one topic, many subscribers", Options{Subscribers: 1000, Window: 256}, (*run).fanout},
	{"topics", "many topics with one subscriber each", Options{Subscribers: 1000, Window: 4}, (*run).fanout},
	{"connections", "many idle subscribers on topics of their own, and events to some", Options{Subscribers: 5000, Rate: 500}, (*run).fanout},
	{"echo", "one publisher, one subscriber, little load: the delay alone", Options{Subscribers: 1, Rate: 500}, (*run).fanout},
	{"publish", "publishers that wait for each acknowledgement", Options{Publishers: 64}, (*run).publish},
	{"replay", "subscribers that read a log from its beginning", Options{Subscribers: 1, Events: 200_000}, (*run).replay},
	{"storm", "many sessions that are cut at once (--kill: with their server) and come back, beside some that are not", Options{Subscribers: 1000, Rate: 100, Live: 50}, (*run).storm},
}

// Scenarios lists names and what they are, in turn.
func Scenarios() (list [][2]string) {
	for _, s := range scenarios {
		list = append(list, [2]string{s.name, s.help})
	}
	return list
}

func find(name string) *scenario {
	for i := range scenarios {
		if scenarios[i].name == name {
			return &scenarios[i]
		}
	}
	return nil
}

// The bounds of what can be asked for. Beyond them a measurement says more about this machine than about the server.
const (
	maxSubscribers = 1_000_000
	maxWindow      = 1 << 20
	maxRate        = 10_000_000
	maxPayload     = 16 << 20
	maxEvents      = 1 << 30
	maxDuration    = 24 * time.Hour
)

// Check fills in the scenario's defaults and says in one line what cannot be. set tells which fields the caller has chosen, by flag name.
func (o *Options) Check(set func(flag string) bool) error {
	s := find(o.Scenario)
	if s == nil {
		return fmt.Errorf("there is no scenario %q", o.Scenario)
	}
	d := s.defaults
	if !set("subscribers") {
		o.Subscribers = d.Subscribers
	}
	if !set("events") {
		o.Events = d.Events
	}
	if !set("publishers") {
		o.Publishers = d.Publishers
	}
	if !set("live") {
		o.Live = d.Live
	}
	if set("window") && set("rate") {
		return errors.New("--window is a closed loop and --rate an open one: choose one of them")
	}
	if !set("window") && !set("rate") {
		o.Window, o.Rate = d.Window, d.Rate
	}
	if err := d.takes(set, s.name); err != nil {
		return err
	}
	for _, c := range []struct {
		flag        string
		value       float64
		least, most float64
	}{
		{"subscribers", float64(o.Subscribers), min(1, float64(d.Subscribers)), maxSubscribers},
		{"connections", float64(o.Connections), 0, maxSubscribers},
		{"window", float64(o.Window), 0, maxWindow},
		{"rate", o.Rate, 0, maxRate},
		{"payload", float64(o.Payload), StampSize, maxPayload},
		{"events", float64(o.Events), min(1, float64(d.Events)), maxEvents},
		{"publishers", float64(o.Publishers), min(1, float64(d.Publishers)), maxSubscribers},
		{"live", float64(o.Live), min(1, float64(d.Live)), maxSubscribers},
	} {
		if math.IsNaN(c.value) || c.value < c.least || c.value > c.most {
			return fmt.Errorf("--%s %s is not between %s and %s", c.flag, number(c.value), number(c.least), number(c.most))
		}
	}
	if err := compress.Check(o.Compression); err != nil {
		return err
	}
	if o.Kill != "" && (len(o.Servers) < 2 || !slices.Contains(o.Servers, o.Kill)) {
		return fmt.Errorf("--kill %s must be one of several servers: give all of them to --server, separated by commas", o.Kill)
	}
	switch {
	case set("window") && o.Window == 0 || set("rate") && o.Rate == 0:
		return errors.New("--window and --rate must be more than 0")
	case o.Duration <= 0 || o.Duration > maxDuration || o.Warmup < 0 || o.Warmup > maxDuration:
		return fmt.Errorf("--duration and --warmup must be positive and at most %v", maxDuration)
	}
	return nil
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// takes says which flags the scenario has no use for.
func (d *Options) takes(set func(string) bool, name string) error {
	for _, c := range []struct {
		flag string
		ok   bool
	}{
		{"subscribers", d.Subscribers > 0 && name != "echo"}, {"connections", d.Subscribers > 0}, {"events", d.Events > 0}, {"publishers", d.Publishers > 0},
		{"window", d.Window > 0}, {"rate", d.Window > 0 || d.Rate > 0}, {"sdk", d.Subscribers > 0 && d.Live == 0},
		{"live", d.Live > 0}, {"kill", d.Live > 0},
	} {
		if set(c.flag) && !c.ok {
			return fmt.Errorf("--%s means nothing to scenario %s", c.flag, name)
		}
	}
	return nil
}

// run is one measurement under way.
type run struct {
	o        Options
	earliest bool
	server   Process
	delays   Recorder
	window   *Window // nil: open loop

	published atomic.Int64
	delivered atomic.Int64
	noticed   atomic.Int64
}

// Run makes the load and measures. Errors are one line.
func Run(ctx context.Context, o Options) (*Result, error) {
	r := &run{o: o}
	if r.o.Progress == nil {
		r.o.Progress = func(string, float64) {}
	}
	if err := r.o.check(ctx); err != nil {
		return nil, err
	}
	r.server = Listener(o.Target)
	res, err := find(o.Scenario).run(r, ctx)
	if err != nil {
		return nil, err
	}
	res.System, res.Scenario, res.Payload, res.Compression = "runnel", o.Scenario, o.Payload, o.Compression
	if o.SDK || res.Storm != nil {
		res.System = "runnel-sdk"
	}
	return res, nil
}

// connections opens what the subscribers share.
func (r *run) connections() (list []*grpc.ClientConn, closeAll func(), err error) {
	closeAll = func() {
		for _, c := range list {
			c.Close()
		}
	}
	n := r.o.Connections
	if n == 0 || n > r.o.Subscribers {
		n = r.o.Subscribers
	}
	for range n {
		c, err := r.o.dial()
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		list = append(list, c)
	}
	return list, closeAll, nil
}

// atOnce is how many subscribers connect at the same time.
const atOnce = 128

// subscribers starts all of them and returns when the last is accepted, or one has failed: then stop tells why.
func (r *run) subscribers(ctx context.Context, topics []string, done func(*sink) bool) (stop func() error, err error) {
	conns, closeAll, err := r.connections()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, atOnce)
	ready := make(chan struct{}, r.o.Subscribers)
	var shards []*Shard
	for range 16 {
		shards = append(shards, r.delays.Shard())
	}
	for i := range r.o.Subscribers {
		group.Go(func() error {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			s := &sink{r: r, shard: shards[i%len(shards)]}
			err := r.subscribe(ctx, conns[i%len(conns)], topics[i%len(topics)], s, func() { <-slots; ready <- struct{}{} }, done)
			if err != nil {
				return fmt.Errorf("subscriber %d: %s", i+1, status.Convert(err).Message())
			}
			return nil
		})
	}
	stop = func() error {
		if done == nil {
			cancel()
		}
		err := group.Wait()
		cancel()
		closeAll()
		return err
	}
	for n := range r.o.Subscribers {
		select {
		case <-ready:
		case <-ctx.Done():
			err := stop()
			return nil, errors.Join(err, context.Cause(ctx))
		}
		if n%100 == 0 {
			r.o.Progress("connecting", float64(n)/float64(r.o.Subscribers))
		}
	}
	return stop, nil
}

// measured is what the measured phase began with.
type measured struct {
	at             time.Time
	delivered      int64
	server, client *float64
}

func (r *run) mark() measured {
	return measured{time.Now(), r.delivered.Load(), r.server.CPU(), Self().CPU()}
}

// fill sets what was measured since m.
func (r *run) fill(res *Result, m measured) {
	now := r.mark()
	n := now.delivered - m.delivered
	res.Seconds = now.at.Sub(m.at).Seconds()
	res.DeliveriesPerSecond = float64(n) / res.Seconds
	res.ServerCPU = Per(Since(m.server, now.server), n)
	res.ClientCPU = Per(Since(m.client, now.client), n)
	r.delays.Fill(res)
}

// wait shows progress through a phase; false if ctx ended it.
func (r *run) wait(ctx context.Context, phase string, d time.Duration) bool {
	const step = 100 * time.Millisecond
	for begin := time.Now(); ; {
		left := d - time.Since(begin)
		if left <= 0 {
			return true
		}
		select {
		case <-time.After(min(left, step)):
			r.o.Progress(phase, min(1, float64(time.Since(begin))/float64(d)))
		case <-ctx.Done():
			return false
		}
	}
}
