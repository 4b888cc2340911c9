package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// TestRollingRestart stops the server as a deployment does, and starts it again, under a stream of events: no subscriber misses an event or
// gets one twice, and the longest pause is reported. RUNNEL_RESTARTS=1: ten restarts, 3 s apart, under 500 subscribers and 1,000 events/s, else two
// under 20 and 200.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	onEngines(t, func(t *testing.T, settings []string) { testRollingRestart(t, settings, 1) })
}

// The same with three servers that share a NATS cluster, one after the other: sessions move.
func TestRollingRestartOfNodes(t *testing.T) {
	t.Parallel()
	testRollingRestart(t, onNATS(natstest.New(t, 1)), 3)
}

func testRollingRestart(t *testing.T, settings []string, servers int) {
	restarts, subscribers, rate, between := 2, 20, 200, time.Second
	if os.Getenv("RUNNEL_RESTARTS") != "" {
		restarts, subscribers, rate, between = 10, 500, 1000, 3*time.Second
	}
	command := binary(t)
	var nodes []*process
	var addresses []string
	for range servers {
		p := &process{t: t, binary: command, addr: freeAddress(t), data: t.TempDir(), env: settings}
		p.start()
		t.Cleanup(func() { p.kill() })
		nodes, addresses = append(nodes, p), append(addresses, p.addr)
	}
	all := strings.Join(addresses, ",")
	client, err := dial(all, "subscribers")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	source, err := dial(all, "source")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()

	var seen, longest atomic.Int64
	got := make([]atomic.Int64, subscribers)
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	for i := range subscribers {
		sub, err := client.Subscribe(t.Context(), "load.>", runnel.From(runnel.Earliest()))
		if err != nil {
			t.Fatal(err)
		}
		following.Go(func() {
			last := time.Now()
			for e, err := range sub.Events(ctx) {
				if ctx.Err() != nil {
					return
				}
				n := got[i].Load()
				if err != nil || string(e.Payload) != fmt.Sprint(n) {
					t.Errorf("subscriber %d: %q, %v, want %d", i, e.Payload, err, n)
					return
				}
				got[i].Store(n + 1)
				seen.Add(1)
				now := time.Now()
				for pause := int64(now.Sub(last)); pause > longest.Load() && n > 0; {
					longest.Store(pause)
				}
				last = now
			}
		})
	}
	pub, err := source.Publisher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	published := 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	publish := func(until time.Duration) {
		for end := time.Now().Add(until); time.Now().Before(end); <-tick.C {
			for range rate / 100 {
				if _, err := pub.Publish(t.Context(), "load.a", []byte(fmt.Sprint(published))); err != nil {
					t.Fatal(err)
				}
				published++
			}
		}
	}
	for n := range restarts {
		p := nodes[n%servers]
		publish(between)
		restarted := make(chan struct{})
		var restarting sync.WaitGroup
		restarting.Go(func() {
			defer close(restarted)
			p.cmd.Process.Signal(syscall.SIGTERM)
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("the server has ended with %v", err)
			}
			p.start()
		})
		for over := false; !over; {
			publish(10 * time.Millisecond)
			select {
			case <-restarted:
				over = true
			default:
			}
		}
		restarting.Wait()
	}
	publish(time.Second)
	if err := pub.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Minute); seen.Load() < int64(published*subscribers) && !t.Failed(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d deliveries", seen.Load(), published*subscribers)
		}
	}
	t.Logf("%d restarts, %d subscribers, %d events: %d deliveries, none lost or twice; the longest pause was %v",
		restarts, subscribers, published, seen.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
}
