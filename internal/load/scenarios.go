package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// fanout publishes events in bulk to subscribers that follow one topic, or each its own.
func (r *run) fanout(ctx context.Context) (*Result, error) {
	res := &Result{Subscribers: r.o.Subscribers, Window: r.o.Window, Rate: r.o.Rate}
	topics, perEvent := []string{r.o.Topic}, r.o.Subscribers
	if r.o.Scenario == "topics" || r.o.Scenario == "connections" {
		topics, perEvent = r.topics(), 1
	}
	if r.o.Window > 0 {
		size := r.o.Window
		if perEvent == 1 {
			size *= r.o.Subscribers
		}
		r.window = NewWindow(size, perEvent)
	}
	before, began := r.server.Settled(), time.Now()
	stop, err := r.subscribers(ctx, topics, nil)
	if err != nil {
		return nil, err
	}
	res.Connect = time.Since(began).Seconds()
	if d := Since(before, r.server.Settled()); d != nil {
		v := *d / float64(r.o.Subscribers)
		res.RSSPerClient = &v
	}
	err = r.flow(ctx, topics, res)
	if err == nil {
		res.Lost = r.settle(ctx, perEvent)
		res.Noticed = r.noticed.Load()
	}
	return res, errors.Join(err, stop())
}

func (r *run) topics() []string {
	list := make([]string, r.o.Subscribers)
	for i := range list {
		list[i] = fmt.Sprintf("%s.%d", r.o.Topic, i)
	}
	return list
}

// flow publishes through warm-up and measurement.
func (r *run) flow(ctx context.Context, topics []string, res *Result) error {
	conn, err := r.o.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	p, err := r.publisher(ctx, conn, topics)
	if err != nil {
		return err
	}
	publishing, stop := context.WithCancel(ctx)
	var group errgroup.Group
	group.Go(func() error {
		defer stop() // a failure ends the phases
		return r.publishUntil(publishing, p)
	})
	if r.wait(publishing, "warming up", r.o.Warmup) {
		r.delays.Reset()
		m := r.mark()
		if r.wait(publishing, "measuring", r.o.Duration) {
			r.fill(res, m)
		}
	}
	stop()
	if err := group.Wait(); err != nil {
		return fmt.Errorf("publishing: %s", status.Convert(err).Message())
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return p.close()
}

func (r *run) publishUntil(ctx context.Context, p *publisher) error {
	publish := func(due time.Time) error {
		r.published.Add(1)
		return p.publish(due)
	}
	if r.window == nil {
		pacer := NewPacer(r.o.Rate)
		for {
			due, err := pacer.Next(ctx)
			if err != nil {
				return nil
			}
			if err := publish(due); err != nil {
				return err
			}
		}
	}
	const most = 64 // between two looks at the context
	for {
		n, err := r.window.Room(ctx, most)
		if err != nil {
			return nil
		}
		for range n {
			if err := publish(time.Now()); err != nil {
				return err
			}
		}
	}
}

// settle waits until everything published has come, as long as something comes, and returns what has not.
func (r *run) settle(ctx context.Context, perEvent int) int64 {
	const patience = 3 * time.Second
	want := r.published.Load() * int64(perEvent)
	last, since := int64(-1), time.Now()
	for {
		got := r.delivered.Load() + r.noticed.Load()
		if got != last {
			last, since = got, time.Now()
		}
		if got >= want || time.Since(since) > patience || !r.wait(ctx, "waiting for the last", 10*time.Millisecond) {
			return want - got
		}
	}
}

// publish has publishers that each wait for their own acknowledgement, call by call.
func (r *run) publish(ctx context.Context) (*Result, error) {
	res := &Result{Window: 1}
	publishing, stop := context.WithCancel(ctx)
	defer stop()
	group, publishing := errgroup.WithContext(publishing)
	conn, err := r.o.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	api := runnelv1.NewStreamServiceClient(conn)
	for range r.o.Publishers {
		shard := r.delays.Shard()
		group.Go(func() error {
			request := &runnelv1.PublishRequest{Topic: r.o.Topic, Payload: make([]byte, r.o.Payload)}
			for {
				sent := time.Now()
				if _, err := api.Publish(r.o.outgoing(publishing), request); err != nil {
					return ended(publishing, err)
				}
				shard.Record(time.Since(sent))
				r.delivered.Add(1)
			}
		})
	}
	if r.wait(publishing, "warming up", r.o.Warmup) {
		r.delays.Reset()
		m := r.mark()
		if r.wait(publishing, "measuring", r.o.Duration) {
			r.fill(res, m)
		}
	}
	stop()
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("publishing: %s", status.Convert(err).Message())
	}
	return res, ctx.Err()
}

// replay stores events, then has subscribers read them all. The percentiles are of the time that a subscriber took.
func (r *run) replay(ctx context.Context) (*Result, error) {
	res := &Result{Subscribers: r.o.Subscribers}
	conn, err := r.o.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	p, err := r.publisher(ctx, conn, []string{r.o.Topic})
	if err != nil {
		return nil, err
	}
	for i := range r.o.Events {
		if err := p.publish(time.Now()); err != nil {
			return nil, fmt.Errorf("publishing: %s", status.Convert(err).Message())
		}
		if i%4096 == 0 {
			r.o.Progress("storing", float64(i)/float64(r.o.Events))
		}
	}
	if err := p.close(); err != nil {
		return nil, fmt.Errorf("publishing: %s", status.Convert(err).Message())
	}
	r.earliest = true
	took := r.delays.Shard()
	m := r.mark()
	stop, err := r.subscribers(ctx, []string{r.o.Topic}, func(s *sink) bool {
		if s.seen < int64(r.o.Events) {
			return false
		}
		took.Record(time.Since(m.at))
		return true
	})
	if err != nil {
		return nil, err
	}
	if err := stop(); err != nil {
		return nil, err
	}
	r.delays.only(took)
	r.fill(res, m)
	res.Lost = int64(r.o.Events)*int64(r.o.Subscribers) - r.delivered.Load() - r.noticed.Load()
	res.Noticed = r.noticed.Load()
	return res, ctx.Err()
}
