package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// forwarder is a second address of a server, as a load balancer is. to says where it leads, from now on; empty: nowhere, and what is open
// is cut.
func forwarder(t *testing.T) (addr string, to func(string)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var target string
	var conns []net.Conn
	var group sync.WaitGroup
	group.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				mu.Unlock()
				continue
			}
			conns = append(conns, in, out)
			mu.Unlock()
			group.Go(func() { io.Copy(in, out); in.Close() })
			group.Go(func() { io.Copy(out, in); out.Close() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return l.Addr().String(), func(addr string) {
		mu.Lock()
		defer mu.Unlock()
		if target = addr; addr != "" {
			return
		}
		for _, c := range conns {
			c.Close()
		}
	}
}

func sessions(t *testing.T, c *runnel.Client) []*runnelv1.SessionInfo {
	t.Helper()
	res, err := runnel.Admin(t.Context(), c, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
		return s.ListSessions(ctx, &runnelv1.ListSessionsRequest{})
	})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetSessions()
}

// states keeps what a session reports.
type states struct {
	mu  sync.Mutex
	all []runnel.State
}

func (s *states) add(one runnel.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, one)
}

func (s *states) onlyLive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Equal(s.all, []runnel.State{runnel.StateConnecting, runnel.StateLive})
}

// Sessions that get old move to where the server says, before they are cut: events come in order, once, and the application sees no pause.
func TestMoveOldSessions(t *testing.T) {
	t.Parallel()
	other, to := forwarder(t)
	s := runneltest.StartServer(t, server.Config{
		MaxStreamAge: 150 * time.Millisecond, DrainNotice: 5 * time.Second, Endpoints: []string{other}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
	})
	to(s.Addr)
	client, publisher := s.Client(), s.Client()
	var told states
	session, err := client.Session(t.Context(), runnel.OnState(told.add))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := session.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for i := 0; len(ids) < 4; i++ {
		want := fmt.Sprint(i)
		if _, err := publisher.Publish(t.Context(), "a.b", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != want {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
		for _, one := range sessions(t, publisher) {
			ids[one.GetSessionId()] = true
		}
		time.Sleep(5 * time.Millisecond) // streams take real time to age
	}
	if !told.onlyLive() {
		t.Errorf("it has moved three times, and the application saw %v", told.all)
	}
}

// A server that stops sends its sessions elsewhere, and what clients call from then on goes there too.
func TestDrainSendsElsewhere(t *testing.T) {
	t.Parallel()
	kept := map[string]server.Namespace{"a": {History: "memory"}}
	next := runneltest.StartServer(t, server.Config{Namespaces: kept})
	s := runneltest.StartServer(t, server.Config{Namespaces: kept, Endpoints: []string{next.Addr}, DrainNotice: 5 * time.Second})
	client := s.Client()
	var told states
	session, err := client.Session(t.Context(), runnel.OnState(told.add))
	if err != nil {
		t.Fatal(err)
	}
	publish := func() {
		t.Helper()
		r, err := session.Publish(t.Context(), "a.b", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	publish()
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	for open := true; open; {
		publish()
		select {
		case <-stopped:
			open = false
		default:
		}
	}
	if !told.onlyLive() {
		t.Errorf("the application saw %v", told.all)
	}
	if _, err := client.Publish(t.Context(), "a.b", nil); err != nil {
		t.Error(err)
	}
	if n := len(sessions(t, next.Client())); n != 1 {
		t.Errorf("%d sessions are at the other server", n)
	}
}

// A client that has learned of another server goes there when its own is gone without a word.
func TestGoElsewhere(t *testing.T) {
	t.Parallel()
	kept := map[string]server.Namespace{"a": {History: "memory"}}
	next := runneltest.StartServer(t, server.Config{Namespaces: kept})
	s := runneltest.StartServer(t, server.Config{Namespaces: kept, Endpoints: []string{next.Addr}})
	through, to := forwarder(t)
	to(s.Addr)
	client, err := runnel.Dial(through, runnel.WithConnectTimeout(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	session, err := client.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to("")
	r, err := session.Publish(t.Context(), "a.b", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}
