package runnel_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Sessions whose server was away for long come back when the connection does, rather than when their backoff happens to be over.
func TestBackWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, away = 20, 20 * time.Second
		var mu sync.Mutex
		var conns []net.Conn
		var down bool
		var up time.Time
		var back []time.Duration  // after the connection
		var states []runnel.State // of the first session
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		dial := func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return nil, errors.New("refused")
			}
			c, err := p.dial(ctx, address)
			conns, up = append(conns, c), time.Now()
			return c, err
		}
		s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
			mu.Lock()
			back = append(back, time.Since(up))
			mu.Unlock()
			if err := welcome(g); err != nil {
				return err
			}
			<-g.Context().Done()
			return nil
		}}
		g := grpc.NewServer()
		runnelv1.RegisterStreamServiceServer(g, s)
		var group sync.WaitGroup
		group.Go(func() { g.Serve(p) })
		c, err := runnel.Dial("passthrough:///pipe", runnel.WithDialOptions(grpc.WithContextDialer(dial)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range sessions {
			note := func(s runnel.State) {
				mu.Lock()
				defer mu.Unlock()
				if i == 0 {
					states = append(states, s)
				}
			}
			if _, err := c.Session(t.Context(), runnel.OnState(note)); err != nil {
				t.Fatal(err)
			}
		}
		mu.Lock()
		down, back = true, nil
		for _, one := range conns {
			one.Close()
		}
		mu.Unlock()
		time.Sleep(away)
		mu.Lock()
		down = false
		mu.Unlock()
		time.Sleep(10 * time.Second)
		mu.Lock()
		if len(back) != sessions {
			t.Errorf("%d of %d sessions are back", len(back), sessions)
		}
		// What a person is shown: it does not flicker with the attempts.
		if want := []runnel.State{runnel.StateConnecting, runnel.StateLive, runnel.StateConnecting, runnel.StateOffline, runnel.StateLive}; !slices.Equal(states, want) {
			t.Errorf("states %v", states)
		}
		spread := map[time.Duration]bool{}
		for _, d := range back {
			spread[d] = true
			if d > 200*time.Millisecond {
				t.Errorf("a session has come back %v after the connection", d)
			}
		}
		if len(spread) < sessions/2 {
			t.Errorf("the sessions have come back at once: %v", back)
		}
		mu.Unlock()
		c.Close()
		g.Stop()
		group.Wait()
	})
}

// A server that stops and starts again and again, as deployments do, is no fault to back off from.
func TestBackFromDrains(t *testing.T) {
	var mu sync.Mutex
	var ended time.Time
	streams := 0
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		mu.Lock()
		if streams++; streams > 1 && time.Since(ended) > 100*time.Millisecond {
			t.Errorf("stream %d comes %v after the one before has ended", streams, time.Since(ended))
		}
		mu.Unlock()
		if err := welcome(g); err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-g.Context().Done():
			return nil
		}
		mu.Lock()
		ended = time.Now()
		mu.Unlock()
		if err := drain(g, 0); err != nil {
			return err
		}
		<-g.Context().Done()
		return nil
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if streams < 18 {
			t.Errorf("%d streams", streams)
		}
	})
}
