package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// residentBytes is what a process holds in memory.
func residentBytes(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatalf("the server is gone: %v", err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

// TestMemory gives a server little memory, many followers that read nothing, each on a topic that gets events of a megabyte, and one
// that reads everything. The server refuses what it has no memory for, cuts who takes nothing, and lives; the one who reads misses
// nothing. RUNNEL_FOLLOWERS=5000 is the long form (make memory).
func TestMemory(t *testing.T) {
	followers, events := 200, 60
	if n := os.Getenv("RUNNEL_FOLLOWERS"); n != "" {
		if _, err := fmt.Sscan(n, &followers); err != nil {
			t.Fatal("RUNNEL_FOLLOWERS: ", err)
		}
		events = 400
	}
	const budget, limit = 128 << 20, 512 << 20
	p := &process{t: t, binary: binary(t), addr: freeAddress(t), data: t.TempDir(), env: []string{
		fmt.Sprint("RUNNEL_LIMITS_MEMORY_BYTES=", budget), fmt.Sprint("GOMEMLIMIT=", limit), "RUNNEL_DEFAULTS_MAX_BYTES=1GiB",
	}}
	p.start()
	defer p.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	dialled := func(window int32) runnelv1.StreamServiceClient {
		conn, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(window), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return runnelv1.NewStreamServiceClient(conn)
	}
	api := dialled(1 << 20)
	if _, err := api.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.t0"}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	reader, err := api.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{
		Pattern: "a.>", Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	refused, topics := 0, 50
	var slow runnelv1.StreamServiceClient
	for i := range followers {
		if i%50 == 0 {
			slow = dialled(64 << 10) // what is not read fills the connection too
		}
		stream, err := slow.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: fmt.Sprintf("a.t%d", i%topics)}}})
		if err == nil {
			_, err = stream.Recv() // Welcome, or a refusal
		}
		switch {
		case status.Code(err) == codes.ResourceExhausted:
			refused++
		case err != nil && ctx.Err() == nil:
			t.Fatalf("follower %d: %v", i, err)
		}
	}
	var group errgroup.Group
	group.Go(func() error {
		for seen := uint64(0); seen < uint64(events)+1; {
			m, err := reader.Recv()
			if err != nil {
				return fmt.Errorf("the reader, after %d events: %w", seen, err)
			}
			for _, c := range m.GetControls() {
				if n := c.GetNotice(); n.GetKind() == runnelv1.NoticeKind_NOTICE_KIND_GAP {
					return fmt.Errorf("the reader missed %v", n)
				}
			}
			for _, d := range m.GetDeliveries() {
				for _, ev := range d.GetEvents() {
					if seen++; ev.GetOffset() != seen {
						return fmt.Errorf("the reader got offset %d in place of %d", ev.GetOffset(), seen)
					}
				}
			}
		}
		return nil
	})
	most, again := int64(0), 0
	for i := 0; i < events; {
		_, err := api.Publish(ctx, &runnelv1.PublishRequest{Topic: fmt.Sprintf("a.t%d", i%topics), Payload: make([]byte, 1<<20)})
		switch {
		case err == nil:
			i++
		case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "memory"):
			again++ // as RetryInfo asks
			time.Sleep(10 * time.Millisecond)
		default:
			t.Fatalf("event %d: %v", i, err)
		}
		most = max(most, residentBytes(t, p.cmd.Process.Pid))
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d followers, %d refused; %d events of 1 MiB, %d refused at first; budget %d MiB, most resident %d MiB", followers, refused, events, again, budget>>20, most>>20)
	if bound := int64(limit + limit/2); most > bound {
		t.Errorf("the server held %d MiB, at most %d are allowed", most>>20, bound>>20)
	}
}
