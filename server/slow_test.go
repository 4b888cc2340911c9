package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

func publish(t *testing.T, ctx context.Context, c runnelv1.StreamServiceClient, topic string, payload []byte, n int) {
	t.Helper()
	stream, err := c.PublishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := stream.Send(&runnelv1.PublishRequest{Topic: topic, Payload: payload}); err != nil {
			_, err = stream.CloseAndRecv()
			t.Fatal(err)
		}
	}
	if sum, err := stream.CloseAndRecv(); err != nil || sum.GetAccepted() != uint64(n) {
		t.Fatal(sum, err)
	}
}

func follow(t *testing.T, ctx context.Context, c runnelv1.StreamServiceClient, subs ...*runnelv1.Subscription) runnelv1.StreamService_SubscribeClient {
	t.Helper()
	stream, err := c.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: subs})
	if err != nil {
		t.Fatal(err)
	}
	for accepted := 0; accepted < len(subs); {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.GetControls() {
			if c.GetSubscribed() != nil {
				accepted++
			}
		}
	}
	return stream
}

// take reads until n events have come.
func take(t *testing.T, stream runnelv1.StreamService_SubscribeClient, n int) {
	t.Helper()
	if err := receive(stream, n); err != nil {
		t.Fatal(err)
	}
}

func receive(stream runnelv1.StreamService_SubscribeClient, n int) error {
	for got := 0; got < n; {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("after %d of %d events: %w", got, n, err)
		}
		for _, d := range m.GetDeliveries() {
			got += len(d.GetEvents())
		}
	}
	return nil
}

// A stream that nobody reads delays no other, on the same connection or elsewhere, and no publisher.
func TestStalledStreamDelaysNobody(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shared, other := api(t, s.Addr), api(t, s.Addr)
	for _, policy := range []runnelv1.OverflowPolicy{0, runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE, runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST} {
		follow(t, ctx, shared, &runnelv1.Subscription{Pattern: "a.b", Overflow: policy}) // and never read
	}
	near := follow(t, ctx, shared, &runnelv1.Subscription{Pattern: "a.b"})
	far := follow(t, ctx, other, &runnelv1.Subscription{Pattern: "a.>"})
	for range 10 {
		publish(t, ctx, other, "a.b", make([]byte, 1000), 500)
		take(t, near, 500)
		take(t, far, 500)
	}
}

// Ten thousand subscriptions share one session and its frames; those that end in flight end exactly.
func TestManySubscriptions(t *testing.T) {
	const n = 10_000
	s := runneltest.StartServer(t, server.Config{Limits: server.Limits{MaxSubscriptions: n}, Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := api(t, s.Addr)
	stream, err := c.EstablishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	topic := func(i int) string { return fmt.Sprintf("a.t%d", i) }
	var group errgroup.Group
	group.Go(func() error {
		for i := range n {
			sub := &runnelv1.Subscription{Id: uint32(i + 1), Pattern: topic(i)}
			if err := stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: sub}}); err != nil {
				return err
			}
		}
		return nil
	})
	ended := map[uint32]bool{}
	subscribed, frames := 0, 0
	seen := make([]int, n)
	total := 0
	read := func(until func() bool) {
		t.Helper()
		for !until() {
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("%d subscribed, %d ended, %d events: %v", subscribed, len(ended), total, err)
			}
			frames++
			for _, c := range m.GetControls() {
				switch {
				case c.GetSubscribed() != nil:
					subscribed++
				case c.GetUnsubscribed() != nil:
					ended[c.GetUnsubscribed().GetSubscription()] = true
				case c.GetCommandError() != nil:
					t.Fatal(c)
				}
			}
			for _, d := range m.GetDeliveries() {
				if ended[d.GetSubscription()] {
					t.Fatalf("subscription %d got an event behind Unsubscribed", d.GetSubscription())
				}
				for _, ev := range d.GetEvents() {
					if ev.GetTopic() != topic(int(d.GetSubscription())-1) {
						t.Fatalf("subscription %d got an event of %s", d.GetSubscription(), ev.GetTopic())
					}
					seen[d.GetSubscription()-1]++
					total++
				}
			}
		}
	}
	read(func() bool { return subscribed == n })
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	round := func() {
		up, err := c.PublishStream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := up.Send(&runnelv1.PublishRequest{Topic: topic(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := up.CloseAndRecv(); err != nil {
			t.Fatal(err)
		}
	}
	frames = 0
	round()
	read(func() bool { return total == n })
	if frames > n/4 {
		t.Errorf("%d events of as many subscriptions came in %d messages: they do not share them", n, frames)
	}
	// Half of them end while events are on their way.
	for i := range n / 2 {
		end := &runnelv1.Unsubscribe{Subscription: uint32(2*i + 1)}
		if err := stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: end}}); err != nil {
			t.Fatal(err)
		}
	}
	round()
	stay := func() (n int) {
		for i := 1; i < len(seen); i += 2 {
			n += seen[i]
		}
		return n
	}
	read(func() bool { return len(ended) == n/2 && stay() == n })
	for i := 1; i < n; i += 2 {
		if seen[i] != 2 {
			t.Fatalf("%s: %d events came, 2 were published", topic(i), seen[i])
		}
	}
}

// metric reads a value from the admin listener.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	res, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// With the memory for clients used up new work is refused, with a word when to come again; what is there goes on, and what ends gives
// back what it held.
func TestMemoryIsUsedUp(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Admin: "127.0.0.1:0", Limits: server.Limits{MemoryBytes: server.MinMemoryBytes}, Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := api(t, s.Addr)
	first := follow(t, ctx, c, &runnelv1.Subscription{Pattern: "a.b"})
	open, end := context.WithCancel(ctx)
	var refused error
	for i := range 1000 {
		// A connection takes so many streams at once.
		conn := c
		if i >= 500 {
			conn = api(t, s.Addr)
		}
		stream, err := conn.Subscribe(open, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.c"}}})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			refused = err
			break
		}
	}
	retry := false
	for _, d := range status.Convert(refused).Details() {
		_, is := d.(*errdetails.RetryInfo)
		retry = retry || is
	}
	if status.Code(refused) != codes.ResourceExhausted || reason(refused) != "MEMORY_EXHAUSTED" || !retry {
		t.Fatalf("in place of a refusal: %v", refused)
	}
	publish(t, ctx, c, "a.b", make([]byte, 1000), 10)
	take(t, first, 10)
	used := `runnel_memory_used_bytes{kind="sessions"}`
	if full, limit := metric(t, s.AdminAddr, used), metric(t, s.AdminAddr, "runnel_memory_limit_bytes"); full < limit/3 || full > limit {
		t.Errorf("%v bytes of sessions at a limit of %v", full, limit)
	}
	end()
	for metric(t, s.AdminAddr, used) > 1<<20 {
		time.Sleep(10 * time.Millisecond) // until the test's deadline
	}
	follow(t, ctx, c, &runnelv1.Subscription{Pattern: "a.c"})
}

// Events of a megabyte to followers that do not read them: windows stay within their share, publishers go on, and those who read get
// everything.
func TestLargeEventsToSlowFollowers(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Admin: "127.0.0.1:0", Limits: server.Limits{MemoryBytes: server.MinMemoryBytes}, Defaults: server.Namespace{History: "disk", MaxBytes: 256 << 20}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const topics, events = 40, 3
	slow := api(t, s.Addr, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<20))
	large := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8 << 20))
	c := api(t, s.Addr, large)
	for i := range topics {
		follow(t, ctx, slow, &runnelv1.Subscription{Pattern: fmt.Sprintf("a.t%d", i)}) // and never read
	}
	reader := follow(t, ctx, c, &runnelv1.Subscription{Pattern: "a.>"})
	var group errgroup.Group
	group.Go(func() error { return receive(reader, topics*events) })
	limit := metric(t, s.AdminAddr, "runnel_memory_limit_bytes")
	for range events {
		for i := range topics {
			publish(t, ctx, c, fmt.Sprintf("a.t%d", i), make([]byte, 1<<20), 1)
			if used := metric(t, s.AdminAddr, `runnel_memory_used_bytes{kind="windows"}`); used > limit/2 {
				t.Fatalf("windows hold %v bytes of %v", used, limit)
			}
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// One hot topic starves nobody: while it is published as fast as the server takes it, to followers that cannot keep up, every
// event of a quiet topic of the same namespace is acknowledged and delivered.
func TestHotTopicStarvesNobody(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "os", MaxEvents: 10_000}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hot, stop := context.WithCancel(ctx)
	var group errgroup.Group
	for range 4 {
		c := api(t, s.Addr)
		follow(t, ctx, c, &runnelv1.Subscription{Pattern: "a.hot", Overflow: runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST}) // and never read
		stream, err := c.PublishStream(hot)
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() error {
			for hot.Err() == nil {
				if err := stream.Send(&runnelv1.PublishRequest{Topic: "a.hot", Payload: make([]byte, 500)}); err != nil && hot.Err() == nil {
					_, err = stream.CloseAndRecv()
					return err
				}
			}
			return nil
		})
	}
	// One session follows both: the hot topic shares it with the quiet one.
	c := api(t, s.Addr)
	both := follow(t, ctx, c, &runnelv1.Subscription{Id: 1, Pattern: "a.hot"}, &runnelv1.Subscription{Id: 2, Pattern: "a.quiet"})
	for i := range 50 {
		if _, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.quiet"}); err != nil {
			t.Fatal(err)
		}
		for came := false; !came; {
			m, err := both.Recv()
			if err != nil {
				t.Fatalf("quiet event %d: %v", i, err)
			}
			for _, d := range m.GetDeliveries() {
				came = came || d.GetSubscription() == 2
			}
		}
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}
