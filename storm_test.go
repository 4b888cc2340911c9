package runnel_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// harbour is two servers in virtual time, a and b, and the connections to a.
type harbour struct {
	mu    sync.Mutex
	down  bool // a
	conns []net.Conn
	cut   time.Time
	back  map[string][]time.Duration // by server, since the cut
	ports map[string]*pipes
}

func (h *harbour) dial(ctx context.Context, address string) (net.Conn, error) {
	h.mu.Lock()
	down := h.down && address == "a"
	h.mu.Unlock()
	if down {
		return nil, errors.New("refused")
	}
	c, err := h.ports[address].dial(ctx, address)
	h.mu.Lock()
	defer h.mu.Unlock()
	if address == "a" {
		h.conns = append(h.conns, c)
	}
	return c, err
}

// serve is one of the servers until stop is called.
func (h *harbour) serve(name string) (stop func()) {
	p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	h.ports[name] = p
	g := grpc.NewServer()
	runnelv1.RegisterStreamServiceServer(g, &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		h.mu.Lock()
		if !h.cut.IsZero() {
			h.back[name] = append(h.back[name], time.Since(h.cut))
		}
		h.mu.Unlock()
		w := &runnelv1.Welcome{SpreadMs: 10, Endpoints: []string{"passthrough:///a", "passthrough:///b"}}
		if err := g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{
			{Control: &runnelv1.Control_Welcome{Welcome: w}}, {Control: &runnelv1.Control_Heartbeat{Heartbeat: &runnelv1.Heartbeat{SpreadMs: 5000}}},
		}}); err != nil {
			return err
		}
		<-g.Context().Done()
		return nil
	}})
	var group sync.WaitGroup
	group.Go(func() { g.Serve(p) })
	return func() { g.Stop(); group.Wait() }
}

// strike cuts all connections to a; with kill it does not come back.
func (h *harbour) strike(kill bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down, h.cut = kill, time.Now()
	for _, c := range h.conns {
		c.Close()
	}
}

// Clients of a server that is gone without a word go elsewhere over the time that it has asked for, whether they knew where from the
// beginning or have been told, alone or many in one process. Where it is still there they are back soon.
func TestStorm(t *testing.T) {
	const clients, spread = 60, 5 * time.Second
	for _, c := range []struct {
		name, target string
		each         int // sessions of a client
		kill         bool
		to           string
		within       time.Duration
	}{
		{"told where", "passthrough:///a", 1, true, "b", spread + 2*time.Second},
		{"one process", "passthrough:///a", clients, true, "b", spread + 2*time.Second},
		{"a broken network", "passthrough:///a", 1, false, "a", spread/10 + 100*time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &harbour{back: map[string][]time.Duration{}, ports: map[string]*pipes{}}
				stopA, stopB := h.serve("a"), h.serve("b")
				var all []*runnel.Client
				for range clients / c.each {
					client, err := runnel.Dial(c.target, runnel.WithDialOptions(grpc.WithContextDialer(h.dial)))
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, client)
					for range c.each {
						if _, err := client.Session(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
				}
				h.strike(c.kill)
				time.Sleep(30 * time.Second) // before the servers are taken for dead, since they say nothing
				h.mu.Lock()
				if got := h.back[c.to]; len(got) != clients {
					t.Errorf("%d of %d have gone to %s: %v", len(got), clients, c.to, h.back)
				}
				per := map[time.Duration]int{}
				for _, d := range h.back[c.to] {
					if d > c.within {
						t.Errorf("one comes %v after the cut", d)
					}
					per[d/(c.within/5)]++
				}
				for slot, n := range per {
					if n > clients/2 {
						t.Errorf("%d of %d come in part %d of 5: %v", n, clients, slot, h.back[c.to])
					}
				}
				h.mu.Unlock()
				for _, client := range all {
					client.Close()
				}
				stopA()
				stopB()
			})
		})
	}
}

// A client that knows several addresses from the beginning takes its time too.
func TestStormOfAList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &harbour{back: map[string][]time.Duration{}, ports: map[string]*pipes{}}
		stopA, stopB := h.serve("a"), h.serve("b")
		dial := func(ctx context.Context, address string) (net.Conn, error) {
			host, _, _ := strings.Cut(address, ":")
			return h.dial(ctx, host)
		}
		var all []*runnel.Client
		onA := func() int {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.conns)
		}
		for onA() < 40 {
			client, err := runnel.Dial("a:1,b:1", runnel.WithDialOptions(grpc.WithContextDialer(dial)))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, client)
			if _, err := client.Session(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		h.strike(true)
		time.Sleep(30 * time.Second) // before the servers are taken for dead, since they say nothing
		h.mu.Lock()
		late := 0
		for _, d := range h.back["b"] {
			if d > time.Second {
				late++
			}
		}
		if n := len(h.back["b"]); n != 40 || late < 20 {
			t.Errorf("%d have gone to b, %d of them after a second: %v", n, late, h.back["b"])
		}
		h.mu.Unlock()
		for _, client := range all {
			client.Close()
		}
		stopA()
		stopB()
	})
}
