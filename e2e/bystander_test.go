package e2e

import (
	"bufio"
	"bytes"
	"context"
	endian "encoding/binary"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// pace is how often a bystander publishes.
const pace = 5 * time.Millisecond

// bystander is a well-behaved publisher and subscriber, each with a connection of its own. Events are due at fixed times, however the
// server does, and a delay counts from when the event was due.
type bystander struct {
	addr  string
	creds credentials.TransportCredentials
	ctx   context.Context // ends with what goes wrong

	mu     sync.Mutex
	delays *hdrhistogram.Histogram // µs, since the last lap
	sent   uint64
	acked  uint64
	seen   uint64
}

// newBystander returns when the first event has arrived.
func newBystander(t *testing.T, addr string, creds credentials.TransportCredentials) *bystander {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	group, ctx := errgroup.WithContext(ctx)
	b := &bystander{addr: addr, creds: creds, ctx: ctx, delays: newDelays()}
	t.Cleanup(func() {
		cancel()
		_ = group.Wait() // settle has said what went wrong
	})
	ready := make(chan struct{})
	group.Go(func() error { return b.follow(ctx, ready) })
	group.Go(func() error {
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		return b.publish(ctx)
	})
	b.settle(t, 1)
	return b
}

func newDelays() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Hour.Microseconds(), 3)
}

// lap returns the delays since the last one.
func (b *bystander) lap() *hdrhistogram.Histogram {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.delays
	b.delays = newDelays()
	return h
}

// dialAPI returns a client with a connection of its own.
func dialAPI(addr string, creds credentials.TransportCredentials) (runnelv1.StreamServiceClient, *grpc.ClientConn, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, nil, err
	}
	return runnelv1.NewStreamServiceClient(conn), conn, nil
}

func (b *bystander) publish(ctx context.Context) error {
	api, conn, err := dialAPI(b.addr, b.creds)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := api.EstablishStream(ctx, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("publisher: %w", err)
	}
	var group errgroup.Group
	group.Go(func() error { return b.acknowledged(stream) })
	group.Go(func() error {
		due := time.Now()
		for n := uint64(0); ctx.Err() == nil; n++ {
			due = due.Add(pace)
			time.Sleep(time.Until(due)) // the rate is the load
			payload := endian.BigEndian.AppendUint64(nil, n)
			payload = endian.BigEndian.AppendUint64(payload, uint64(due.UnixMicro()))
			b.mu.Lock()
			b.sent = n + 1
			b.mu.Unlock()
			err := stream.Send(&runnelv1.StreamRequest{RequestId: n + 1, Request: &runnelv1.StreamRequest_Publish{
				Publish: &runnelv1.PublishRequest{Topic: "calm.t", Payload: payload},
			}})
			if err != nil {
				return nil // the receiver learns why
			}
		}
		return nil
	})
	return group.Wait()
}

// acknowledged checks that publishes are answered one after the other.
func (b *bystander) acknowledged(stream runnelv1.StreamService_EstablishStreamClient) error {
	for want := uint64(1); ; {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("publisher, after %d answers: %w", want-1, err)
		}
		for _, c := range m.GetControls() {
			switch {
			case c.GetRequestId() == 0:
			case c.GetPublished() == nil || c.GetRequestId() != want:
				return fmt.Errorf("publisher: in place of the answer to %d came %v", want, c)
			default:
				want++
				b.mu.Lock()
				b.acked++
				b.mu.Unlock()
			}
		}
	}
}

// follow checks that every event comes once and in order.
func (b *bystander) follow(ctx context.Context, ready chan struct{}) error {
	api, conn, err := dialAPI(b.addr, b.creds)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := api.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "calm.>"}}}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("subscriber: %w", err)
	}
	for next := uint64(0); ; {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("subscriber, after %d events: %w", next, err)
		}
		now := time.Now().UnixMicro()
		for _, c := range m.GetControls() {
			switch {
			case c.GetSubscribed() != nil:
				close(ready)
			case c.GetNotice().GetKind() == runnelv1.NoticeKind_NOTICE_KIND_GAP:
				return fmt.Errorf("subscriber, after %d events: %v", next, c)
			}
		}
		for _, d := range m.GetDeliveries() {
			for _, e := range d.GetEvents() {
				p := e.GetPayload()
				if len(p) != 16 || endian.BigEndian.Uint64(p) != next {
					return fmt.Errorf("subscriber: event %x in place of %d", p, next)
				}
				next++
				b.mu.Lock()
				_ = b.delays.RecordValue(max(now-int64(endian.BigEndian.Uint64(p[8:])), 1)) // an hour fits
				b.seen = next
				b.mu.Unlock()
			}
		}
	}
}

// settle waits until everything that was sent by now, and at least as many, is acknowledged and has arrived.
func (b *bystander) settle(t *testing.T, least uint64) {
	t.Helper()
	b.mu.Lock()
	want := max(b.sent, least)
	b.mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(pace) { // polling what other goroutines count
		b.mu.Lock()
		acked, seen := b.acked, b.seen
		b.mu.Unlock()
		if b.ctx.Err() != nil {
			t.Fatalf("bystander: %v", context.Cause(b.ctx))
		}
		if acked >= want && seen >= want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("bystander: of %d events, %d were acknowledged and %d arrived", want, acked, seen)
		}
	}
}

// goroutines is how many the server has.
func (p *process) goroutines(t *testing.T) int {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}} // a connection would count too
	res, err := client.Get("http://" + p.admin + "/metrics")
	if err != nil {
		t.Fatalf("the server is gone: %v", err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		var n float64
		if _, err := fmt.Sscanf(lines.Text(), "go_goroutines %g", &n); err == nil {
			return int(n)
		}
	}
	t.Fatal("the metrics do not say how many goroutines there are")
	return 0
}

// peakBytes is the most that the server has held in memory since resetPeak.
func (p *process) peakBytes(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatalf("the server is gone: %v", err)
	}
	for line := range bytes.Lines(b) {
		var kib int64
		if _, err := fmt.Sscanf(strings.TrimSpace(string(line)), "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("the server has exited")
	return 0
}

// resetPeak makes the peak start anew. Where the kernel does not allow that, the peak is the process's: higher, so no less strict.
func (p *process) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}
