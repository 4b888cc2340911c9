package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/bench/receive"
	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

// workload is one measurement of one system.
type workload struct {
	scenario    string
	subscribers int
	window      int
	rate        float64
	payload     int
	warmup      time.Duration
	duration    time.Duration
}

// ownTopics says that each subscriber has a topic of its own.
func (w *workload) ownTopics() bool { return w.scenario == "topics" || w.scenario == "connections" }

func (w *workload) topics() []string {
	if !w.ownTopics() {
		return []string{"bench.fanout"}
	}
	list := make([]string, w.subscribers)
	for i := range list {
		list[i] = fmt.Sprintf("bench.t%d", i)
	}
	return list
}

// run starts the system's server, loads it, measures and stops it.
func (w *workload) run(ctx context.Context, s *system.System) (*load.Result, error) {
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
	res := &load.Result{System: s.Name, Scenario: w.scenario, Subscribers: w.subscribers, Window: w.window, Rate: w.rate, Payload: w.payload}
	r, err := receive.New(w.subscribers)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	perEvent := w.subscribers
	if w.ownTopics() {
		perEvent = 1
	}
	if w.window > 0 {
		size := w.window
		if perEvent == 1 {
			size *= w.subscribers
		}
		r.Window = load.NewWindow(size, perEvent)
	}
	receiving := make(chan error, 1)
	var group errgroup.Group
	group.Go(func() error {
		err := r.Run()
		receiving <- err
		return err
	})
	err = w.connect(ctx, s, server, r, receiving, res)
	if err == nil {
		err = w.load(ctx, s, server, r, receiving, res, perEvent)
	}
	r.Stop()
	return res, errors.Join(err, group.Wait())
}

// connect opens all subscriptions.
func (w *workload) connect(ctx context.Context, s *system.System, server *system.Server, r *receive.Receiver, receiving <-chan error, res *load.Result) error {
	before, cpu, began := server.Process.Settled(), server.Process.CPU(), time.Now()
	topics := w.topics()
	for i := range w.subscribers {
		topic := topics[i%len(topics)]
		if err := r.Add(server.Address, s.Hello(topic), s.Parser(topic)); err != nil {
			return fmt.Errorf("%s: subscriber %d: %w", s.Name, i+1, err)
		}
	}
	select {
	case <-r.AllReady():
	case err := <-receiving:
		return fmt.Errorf("%s: %w", s.Name, err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Minute):
		return fmt.Errorf("%s: not all subscriptions stand after a minute", s.Name)
	}
	res.Connect = time.Since(began).Seconds()
	if d := load.Since(cpu, server.Process.CPU()); d != nil {
		res.ConnectCPU = *d / float64(w.subscribers) * 1e6
	}
	if d := load.Since(before, server.Process.Settled()); d != nil {
		v := *d / float64(w.subscribers)
		res.RSSPerClient = &v
	}
	return nil
}

// load publishes through warm-up and measurement, then waits for what is on its way.
func (w *workload) load(ctx context.Context, s *system.System, server *system.Server, r *receive.Receiver, receiving <-chan error, res *load.Result, perEvent int) error {
	p, err := s.Publisher(ctx, server.Address)
	if err != nil {
		return fmt.Errorf("%s: publisher: %w", s.Name, err)
	}
	published := int64(0)
	publishing, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() (err error) {
		defer stop()
		published, err = w.publish(publishing, p, r)
		return err
	})
	phase := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-receiving:
			return fmt.Errorf("%s: receiving: %w", s.Name, err)
		case <-publishing.Done():
			return errors.Join(ctx.Err(), errors.New(s.Name+": publishing has ended"))
		}
	}
	err = phase(w.warmup)
	if err == nil {
		r.Delays.Reset()
		began, n, cpu, own := time.Now(), r.Delivered.Load(), server.Process.CPU(), load.Self().CPU()
		if err = phase(w.duration); err == nil {
			n = r.Delivered.Load() - n
			res.Seconds = time.Since(began).Seconds()
			res.DeliveriesPerSecond = float64(n) / res.Seconds
			res.ServerCPU = load.Per(load.Since(cpu, server.Process.CPU()), n)
			res.ClientCPU = load.Per(load.Since(own, load.Self().CPU()), n)
			r.Delays.Fill(res)
		}
	}
	stop()
	err = errors.Join(group.Wait(), err)
	if err == nil {
		settle(r, published*int64(perEvent))
		res.Noticed = r.Noticed.Load()
		res.Lost = published*int64(perEvent) - r.Delivered.Load() - res.Noticed
	}
	return errors.Join(err, p.Close())
}

// publish sends events until ctx ends, and returns how many.
func (w *workload) publish(ctx context.Context, p system.Publisher, r *receive.Receiver) (n int64, err error) {
	topics, payload := w.topics(), make([]byte, w.payload)
	send := func(due time.Time) error {
		receive.Stamp(payload, due)
		err := p.Publish(topics[n%int64(len(topics))], payload)
		n++
		return err
	}
	if r.Window == nil {
		pacer := load.NewPacer(w.rate)
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
		room, err := r.Window.Room(ctx, 256)
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
func settle(r *receive.Receiver, want int64) {
	const patience = 3 * time.Second
	last, since := int64(-1), time.Now()
	for {
		got := r.Delivered.Load() + r.Noticed.Load()
		if got != last {
			last, since = got, time.Now()
		}
		if got >= want || time.Since(since) > patience {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
