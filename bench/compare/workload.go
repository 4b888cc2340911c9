package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/bench/pace"
	"github.com/runnelhq/runnel/bench/receive"
	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

// workload is one measurement of one system. It is sent to other processes as JSON.
type workload struct {
	Scenario    string
	Subscribers int
	Publishers  int // that wait for acknowledgements; then nobody subscribes
	Window      int
	Rate        float64
	Payload     int    // bytes
	Content     string // a key of contents; empty: zeros
	Warmup      time.Duration
	Duration    time.Duration
	PerProcess  int // most subscribers of one server process

	hold func() error // called when all are connected; nil: nothing to wait for
}

// ownTopics says that each subscriber has a topic of its own.
func (w *workload) ownTopics() bool { return w.Scenario == "topics" || w.Scenario == "connections" }

// perEvent is how many subscribers an event goes to.
func (w *workload) perEvent() int {
	if w.ownTopics() {
		return 1
	}
	return w.Subscribers
}

func (w *workload) topics() []string {
	if !w.ownTopics() {
		return []string{"bench.fanout"}
	}
	list := make([]string, w.Subscribers)
	for i := range list {
		list[i] = fmt.Sprintf("bench.t%d", i)
	}
	return list
}

// measurement is a workload under way.
type measurement struct {
	*workload
	system    *system.System
	server    *system.Server
	r         *receive.Receiver
	receiving chan error // what has ended receiving
	stops     []func() error
	duplex    system.Publisher // nil: whoever publishes has a connection of its own
	res       *load.Result
}

// run starts the system's server, loads it, measures and stops it.
func (w *workload) run(ctx context.Context, s *system.System) (*load.Result, error) {
	if w.Subscribers > w.PerProcess {
		return w.runCells(ctx, s)
	}
	return w.runHere(ctx, s)
}

func (w *workload) runHere(ctx context.Context, s *system.System) (*load.Result, error) {
	dir, err := os.MkdirTemp("", "runnel-bench-data-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	server, err := s.Start(dir)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	res := &load.Result{System: s.Name, Scenario: w.Scenario, Subscribers: w.Subscribers, Publishers: w.Publishers, Window: w.Window, Rate: w.Rate, Payload: w.Payload,
		Content: w.Content, Compression: s.Compression}
	if w.Publishers > 0 {
		return res, w.acked(ctx, s, server, res)
	}
	r, err := receive.New(w.Subscribers)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if w.Window > 0 {
		size := w.Window
		if w.ownTopics() {
			size *= w.Subscribers
		}
		r.Window = load.NewWindow(size, w.perEvent())
	}
	m := &measurement{workload: w, system: s, server: server, r: r, receiving: make(chan error, 1), res: res}
	var group errgroup.Group
	group.Go(func() error {
		err := r.Run()
		m.receiving <- err
		return err
	})
	if err = m.connect(ctx); err == nil {
		if w.hold != nil {
			err = w.hold()
		}
		if err == nil {
			err = m.load(ctx)
		}
	}
	for _, stop := range m.stops {
		err = errors.Join(err, stop())
	}
	r.Stop()
	if received := group.Wait(); err == nil {
		err = received
	}
	return res, err
}

// countsMemory is the least number of subscribers whose memory can be told from the server's own unrest.
const countsMemory = 100

// connect opens all subscriptions.
func (m *measurement) connect(ctx context.Context) error {
	var before *float64
	if m.Subscribers >= countsMemory {
		var err error
		if before, err = m.server.Collected(); err != nil {
			return err
		}
	}
	cpu, began := m.server.CPU(), time.Now()
	topics := m.topics()
	for i := range m.Subscribers {
		if err := m.subscribe(ctx, topics[i%len(topics)]); err != nil {
			return fmt.Errorf("subscriber %d: %w", i+1, err)
		}
	}
	select {
	case <-m.r.AllReady():
	case err := <-m.receiving:
		return fmt.Errorf("subscribing: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Minute):
		return errors.New("not all subscriptions stand after a minute")
	}
	m.res.Connect = time.Since(began).Seconds()
	n := float64(m.Subscribers)
	if d := load.Since(cpu, m.server.CPU()); d != nil {
		m.res.ConnectCPU = *d / n * 1e6
	}
	if before == nil {
		return nil
	}
	m.res.RSSBeforeGC = divided(load.Since(before, m.server.Steady()), n)
	after, err := m.server.Collected()
	m.res.RSSPerClient = divided(load.Since(before, after), n)
	return err
}

func divided(v *float64, n float64) *float64 {
	if v == nil {
		return nil
	}
	d := *v / n
	return &d
}

// subscribe opens one.
func (m *measurement) subscribe(ctx context.Context, topic string) error {
	// Reading the clock costs less than a tenth of what the cheapest client costs per event, but more than nothing.
	const sample, each = 16, 1
	switch s := m.system; {
	case s.Duplex != nil && m.Scenario == "echo":
		p, err := s.Duplex(ctx, m.server.Address, topic, m.r.Sink(each))
		m.duplex = p
		return err
	case s.Client != nil:
		every := sample
		if m.Window == 0 {
			every = each
		}
		stop, err := s.Client(ctx, m.server.Address, topic, m.r.Sink(every))
		if err == nil {
			m.stops = append(m.stops, stop)
		}
		return err
	default:
		return m.r.Add(m.server.Address, s.Hello(topic), s.Parser(topic))
	}
}

// load publishes through warm-up and measurement, then waits for what is on its way.
func (m *measurement) load(ctx context.Context) error {
	p := m.duplex
	if p == nil {
		var err error
		if p, err = m.system.Publisher(ctx, m.server.Address); err != nil {
			return fmt.Errorf("connecting the publisher: %w", err)
		}
	}
	published := int64(0)
	publishing, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() (err error) {
		defer stop()
		published, err = m.publish(publishing, p)
		return err
	})
	err := m.phases(publishing)
	if ctx.Err() != nil || err != nil { // a publisher that a dead or stuck server holds up is let go by this alone
		m.server.Stop()
	}
	stop()
	if e := group.Wait(); e != nil && (err == nil || errors.Is(err, errEnded)) {
		err = fmt.Errorf("publishing: %w", e)
	}
	if err != nil {
		p.Close() // it has failed already
		return err
	}
	if err := m.settle(published * int64(m.perEvent())); err != nil {
		return err
	}
	m.res.Noticed = m.r.Noticed.Load()
	m.res.Lost = published*int64(m.perEvent()) - m.r.Delivered.Load() - m.res.Noticed
	return p.Close()
}

// phases waits through warm-up and measurement.
func (m *measurement) phases(publishing context.Context) error {
	if err := m.phase(publishing, m.Warmup); err != nil {
		return err
	}
	r := m.r
	r.Delays.Reset()
	bytes := r.Bytes.Load()
	user, kernel := m.server.Ticks()
	began, n, cpu, own := time.Now(), r.Delivered.Load(), m.server.CPU(), system.CPU(os.Getpid())
	if err := m.phase(publishing, m.Duration); err != nil {
		return err
	}
	n = r.Delivered.Load() - n
	m.res.Seconds = time.Since(began).Seconds()
	m.res.DeliveriesPerSecond = float64(n) / m.res.Seconds
	m.res.ServerCPU = load.Per(load.Since(cpu, m.server.CPU()), n)
	m.res.ClientCPU = load.Per(load.Since(own, system.CPU(os.Getpid())), n)
	user2, kernel2 := m.server.Ticks()
	if all := user2 - user + kernel2 - kernel; all > 0 {
		share := (kernel2 - kernel) / all
		m.res.ServerKernel = &share
	}
	if n > 0 {
		m.res.WireBytes = float64(r.Bytes.Load()-bytes) / float64(n)
	}
	r.Delays.Fill(m.res)
	return nil
}

var errEnded = errors.New("publishing has ended early")

func (m *measurement) phase(publishing context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case err := <-m.receiving:
		return fmt.Errorf("receiving: %w", err)
	case <-publishing.Done():
		return errEnded
	}
}

// publish sends events until ctx ends, and returns how many.
func (m *measurement) publish(ctx context.Context, p system.Publisher) (n int64, err error) {
	topics, payloads := m.topics(), m.payloads()
	m.res.Payload = meanSize(payloads)
	send := func(due time.Time) error {
		payload := payloads[n%int64(len(payloads))]
		receive.Stamp(payload, due)
		err := p.Publish(topics[n%int64(len(topics))], payload)
		n++
		return err
	}
	if m.r.Window == nil {
		pacer := pace.New(m.Rate)
		for {
			due, err := pacer.Next(ctx)
			if err != nil {
				return n, nil
			}
			if err := errors.Join(send(due), p.Flush()); err != nil {
				return n, err
			}
		}
	}
	for {
		room, err := m.r.Window.Room(ctx, 256)
		if err != nil {
			return n, nil
		}
		for range room {
			if err := send(time.Now()); err != nil {
				return n, err
			}
		}
		if err := p.Flush(); err != nil {
			return n, err
		}
	}
}

// settle waits until everything has come, as long as something comes.
func (m *measurement) settle(want int64) error {
	const patience = 3 * time.Second
	last, since := int64(-1), time.Now()
	for {
		got := m.r.Delivered.Load() + m.r.Noticed.Load()
		if got != last {
			last, since = got, time.Now()
		}
		if got >= want || time.Since(since) > patience {
			return nil
		}
		select {
		case err := <-m.receiving:
			return fmt.Errorf("receiving: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
