package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// crowd is many followers of one namespace, each with a policy, a credit and a pace of its own.
type crowd struct {
	api       []runnelv1.StreamServiceClient
	namespace string
	kept      bool          // the namespace has history
	published atomic.Uint64 // events so far, acknowledged
	over      chan struct{} // closed when no more will be published
}

// account is one follower's.
type account struct {
	start                               uint64 // where it began, by number of the event
	delivered, dropped, conflated, gaps uint64
	ended                               uint64 // times that DISCONNECT has ended it
	position                            *runnelv1.Position
}

func (a *account) sum() uint64 { return a.delivered + a.dropped + a.conflated + a.gaps }

// TestAccounting has a crowd of mixed speed follow publishers for some time. At the end every follower can say of every event that
// it was delivered, dropped, conflated or lies in a gap. RUNNEL_ACCOUNTING=5m RUNNEL_FOLLOWERS=1000 is the long form (make accounting).
func TestAccounting(t *testing.T) {
	followers, duration := 30, time.Second
	if d := os.Getenv("RUNNEL_ACCOUNTING"); d != "" {
		var err error
		if duration, err = time.ParseDuration(d); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(os.Getenv("RUNNEL_FOLLOWERS"), &followers); err != nil {
			t.Fatal("RUNNEL_FOLLOWERS: ", err)
		}
	}
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{
		"kept": {History: "memory", MaxEvents: 20_000}, "passing": {History: "none"},
	}})
	for _, namespace := range []string{"kept", "passing"} {
		t.Run(namespace, func(t *testing.T) {
			c := &crowd{namespace: namespace, kept: namespace == "kept", over: make(chan struct{})}
			for range 20 {
				conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(16<<20))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c.api = append(c.api, runnelv1.NewStreamServiceClient(conn))
			}
			c.run(t, followers, duration)
		})
	}
}

func (c *crowd) run(t *testing.T, followers int, duration time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), duration+2*time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	ready := make(chan struct{}, followers)
	accounts := make([]account, followers)
	for i := range followers {
		group.Go(func() error {
			err := c.follow(ctx, i, &accounts[i], func() { ready <- struct{}{} })
			if err != nil {
				return fmt.Errorf("follower %d, %+v: %w", i, accounts[i], err)
			}
			return nil
		})
	}
	for range followers {
		select {
		case <-ready:
		case <-ctx.Done():
			t.Fatal(group.Wait())
		}
	}
	if err := c.publish(ctx, duration); err != nil {
		t.Fatal(errors.Join(err, group.Wait()))
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	var all account
	for i, a := range accounts {
		if want := c.published.Load() - a.start; a.sum() != want {
			t.Errorf("follower %d: %d delivered + %d dropped + %d conflated + %d in gaps = %d, but %d matched", i, a.delivered, a.dropped, a.conflated, a.gaps, a.sum(), want)
		}
		all.delivered += a.delivered
		all.dropped += a.dropped
		all.conflated += a.conflated
		all.gaps += a.gaps
		all.ended += a.ended
	}
	t.Logf("%d followers, %d events published, %d matched = %d delivered + %d dropped + %d conflated + %d in gaps; %d ended as slow and resumed",
		followers, c.published.Load(), all.sum(), all.delivered, all.dropped, all.conflated, all.gaps, all.ended)
}

// publish sends bursts of keyed events until the time is over.
func (c *crowd) publish(ctx context.Context, duration time.Duration) error {
	stream, err := c.api[0].PublishStream(ctx)
	if err != nil {
		return err
	}
	const rate, bursts = 1000, 50 // events and bursts per second
	n := uint64(0)
	for end := time.Now().Add(duration); time.Now().Before(end); time.Sleep(time.Second / bursts) {
		for range rate / bursts {
			r := &runnelv1.PublishRequest{Topic: fmt.Sprintf("%s.t%d", c.namespace, n%5), Key: fmt.Sprint(n % 50), Payload: make([]byte, 200)}
			if err := stream.Send(r); err != nil {
				_, err = stream.CloseAndRecv()
				return err
			}
			n++
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		return err
	}
	c.published.Store(n)
	close(c.over)
	return nil
}

// speeds are how long a follower thinks about a message.
var speeds = []func() time.Duration{
	func() time.Duration { return 0 },
	func() time.Duration { return 5 * time.Millisecond },
	func() time.Duration { return rand.N(100 * time.Millisecond) },
	func() time.Duration { // now and then it is away
		if rand.N(50) == 0 {
			return rand.N(2 * time.Second)
		}
		return 0
	},
}

func (c *crowd) follow(ctx context.Context, i int, a *account, ready func()) error {
	policies := []runnelv1.OverflowPolicy{2, 3} // DROP_OLDEST, CONFLATE
	if c.kept {
		policies = []runnelv1.OverflowPolicy{1, 2, 3, 4}
	}
	sub := &runnelv1.Subscription{Pattern: c.namespace + ".>", Overflow: policies[i%len(policies)], MaxLag: 200}
	speed := speeds[i/len(policies)%len(speeds)]
	if credits := i / len(policies) / len(speeds) % 2; credits == 1 {
		sub.Credit = 100
	}
	if sub.GetOverflow() == 3 && i%3 == 0 {
		sub.MinIntervalMs = 100
	}
	api := c.api[i%len(c.api)]
	for {
		err := c.session(ctx, api, sub, speed, a, ready)
		var slow *errdetails.ErrorInfo
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				slow = info
			}
		}
		if err == nil || slow.GetReason() != "SLOW_CONSUMER" || sub.GetOverflow() != 4 {
			return err
		}
		a.ended++
		if got := fmt.Sprint(a.position.GetOffset()); got != slow.GetMetadata()["offset"] {
			return fmt.Errorf("ended at %s, but %s was delivered", slow.GetMetadata()["offset"], got)
		}
		sub.Start = &runnelv1.StartPosition{At: &runnelv1.StartPosition_After{After: a.position}}
		ready = func() {}
	}
}

// session follows until all that will ever be published is accounted for, or the stream ends.
func (c *crowd) session(ctx context.Context, api runnelv1.StreamServiceClient, sub *runnelv1.Subscription, speed func() time.Duration, a *account, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.EstablishStream(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: sub}}); err != nil {
		return err
	}
	// A goroutine receives, so that the end is noticed when nothing comes any more.
	type message struct {
		m   *runnelv1.StreamResponse
		err error
	}
	messages := make(chan message)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	receiver.Go(func() {
		for {
			m, err := stream.Recv()
			select {
			case messages <- message{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	over := c.over
	heartbeat := time.NewTicker(15 * time.Second)
	defer heartbeat.Stop()
	for {
		var got message
		select {
		case got = <-messages:
		case <-heartbeat.C:
			// If the stream has ended, the reason comes with the next message.
			_ = stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Heartbeat{Heartbeat: &runnelv1.Heartbeat{}}})
			continue
		case <-over:
			over = nil // the number of events is known now
		}
		if got.err != nil {
			return got.err
		}
		n := a.take(got.m, ready)
		if over == nil && a.start+a.sum() >= c.published.Load() {
			return nil
		}
		if sub.GetCredit() > 0 && n > 0 {
			credit := &runnelv1.Credit{Subscription: 1, Events: n}
			_ = stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Credit{Credit: credit}})
		}
		select {
		case <-time.After(speed()):
		case <-c.over: // from now on everybody hurries
		}
	}
}

// take counts what a message accounts for, and returns how many events it held.
func (a *account) take(m *runnelv1.StreamResponse, ready func()) (events uint32) {
	for _, c := range m.GetControls() {
		if s := c.GetSubscribed(); s != nil {
			a.position = s.GetPosition()
			ready()
		}
		switch n := c.GetNotice(); n.GetKind() {
		case runnelv1.NoticeKind_NOTICE_KIND_DROPPED:
			a.dropped += n.GetCount()
		case runnelv1.NoticeKind_NOTICE_KIND_CONFLATED:
			a.conflated += n.GetCount()
		case runnelv1.NoticeKind_NOTICE_KIND_GAP:
			a.gaps += n.GetTo() - n.GetFrom() + 1 // every event of the namespace matches
		}
	}
	for _, d := range m.GetDeliveries() {
		events += uint32(len(d.GetEvents()))
		if n := len(d.GetEvents()); n > 0 && d.GetEvents()[n-1].GetOffset() > 0 {
			a.position.Offset = d.GetEvents()[n-1].GetOffset()
		}
	}
	a.delivered += uint64(events)
	return events
}
