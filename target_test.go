package runnel_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// What Dial takes, and the one line that says what is wrong with the rest.
func TestTargets(t *testing.T) {
	t.Parallel()
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprintf("h%d:1", i)
	}
	for target, want := range map[string]string{
		"127.0.0.1:50051":         "",
		"[::1]:50051":             "",
		"server.example:50051":    "",
		"dns:1":                   "",
		"a:1,b:2, c:3":            "",
		"static:///a:1,b:2":       "",
		"static:///a:1":           "",
		"dns:///server.example:1": "",
		"passthrough:///x":        "",
		"unix:/run/runnel.sock":   "",
		"":                        "it must be HOST:PORT",
		"localhost":               "it must be HOST:PORT",
		"localhost:http":          "its port must be a number from 1 to 65535",
		"localhost:0":             "its port must be a number from 1 to 65535",
		"http://localhost:1":      "no resolver is known for http:",
		"etcd:///service":         "no resolver is known for etcd:",
		"a:1,b":                   `"b": it must be HOST:PORT`,
		"a:1,,b:2":                `"": it must be HOST:PORT`,
		"static:///":              "it must be HOST:PORT",
		"static:///a:1/b":         "its port must be a number",
		"a/b:1":                   "its host is no name",
		"dns:///":                 "there is no name behind dns:///",
		"dns:///a:1,b:2":          "dns:/// takes one name",
		"dns:///%zz":              "it is no URL",
		strings.Join(many, ","):   "more than 1000 addresses",
	} {
		c, err := runnel.Dial(target)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", target, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%.50q: %v, want %s", target, err, want)
		}
		if err == nil {
			c.Close()
		}
	}
	if _, err := runnel.Dial("a:1", runnel.WithBalancing("best")); err == nil || err.Error() != `balancing "best" is not one of pick-first, round-robin, least-request, weighted` {
		t.Error(err)
	}
}

// fleet is some servers, where nothing is kept, so that it does not matter which one a client is at.
func fleet(t *testing.T, n int, cfg server.Config) (all []*runneltest.Server, list string) {
	t.Helper()
	cfg.Namespaces = map[string]server.Namespace{"a": {History: "memory"}}
	var addresses []string
	for range n {
		one := runneltest.StartServer(t, cfg)
		all = append(all, one)
		addresses = append(addresses, one.Addr)
	}
	return all, strings.Join(addresses, ",")
}

// open counts a server's sessions.
func open(t *testing.T, s *runneltest.Server) int {
	t.Helper()
	res, err := runnel.Admin(t.Context(), s.Client(), func(ctx context.Context, a runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
		return a.ListSessions(ctx, &runnelv1.ListSessionsRequest{})
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(res.GetSessions())
}

// A session leaves servers that stop, one after the other, for another of its list, with numbers or names, and the application sees no
// pause.
func TestListMovesOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host      string
		balancing runnel.Balancing
	}{{"127.0.0.1", runnel.PickFirst}, {"localhost", runnel.PickFirst}, {"127.0.0.1", runnel.RoundRobin}} {
		t.Run(c.host+" "+string(c.balancing), func(t *testing.T) {
			t.Parallel()
			all, list := fleet(t, 3, server.Config{DrainNotice: 5 * time.Second})
			list = strings.ReplaceAll(list, "127.0.0.1", c.host)
			client, err := runnel.Dial(list, runnel.WithBalancing(c.balancing), runnel.WithConnectTimeout(30*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var mu sync.Mutex
			var told []runnel.State
			session, err := client.Session(t.Context(), runnel.OnState(func(s runnel.State) { mu.Lock(); told = append(told, s); mu.Unlock() }))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				for i, s := range all {
					if open(t, s) == 1 {
						s.Stop()
						all = append(all[:i], all[i+1:]...)
						break
					}
				}
				r, err := session.Publish(t.Context(), "a.b", nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if len(all) != 1 || open(t, all[0]) != 1 {
				t.Errorf("%d servers are left", len(all))
			}
			mu.Lock()
			defer mu.Unlock()
			if len(told) != 2 {
				t.Errorf("the application saw %v", told)
			}
		})
	}
}

// A policy that connects to all servers spreads the sessions of one client; pick-first keeps them together.
func TestBalancing(t *testing.T) {
	t.Parallel()
	for _, b := range runnel.Balancings() {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			all, list := fleet(t, 3, server.Config{})
			client, err := runnel.Dial(list, runnel.WithBalancing(b))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for n := 1; ; n++ { // the first few may come before all connections stand
				if _, err := client.Session(t.Context()); err != nil {
					t.Fatal(err)
				}
				least, used := n, 0
				for _, s := range all {
					if k := open(t, s); k > 0 {
						used++
						least = min(least, k)
					}
				}
				if b == runnel.PickFirst && used != 1 {
					t.Fatalf("pick-first is at %d servers", used)
				}
				if b == runnel.PickFirst && n == 20 || used == 3 && least >= 5 {
					return
				}
				if n == 60 {
					t.Fatalf("of %d sessions the least at one server is %d", n, least)
				}
			}
		})
	}
}

// named is a connection that knows the address it was made for.
type named struct {
	net.Conn
	to string
}

func (c named) RemoteAddr() net.Addr { return &net.UnixAddr{Name: c.to} }

// A client does not go back to a server that refused it because it stops, unless it is the only one left.
func TestListAvoidsDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var visits []string
		first := "" // where the client goes first, and is refused at first
		stop := make(chan struct{})
		conns := map[string]*pipes{}
		var group sync.WaitGroup
		var servers []*grpc.Server
		for _, addr := range []string{"a:1", "b:1", "c:1"} {
			p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
			conns[addr] = p
			g := grpc.NewServer()
			runnelv1.RegisterStreamServiceServer(g, &script{establish: func(s runnelv1.StreamService_EstablishStreamServer) error {
				mu.Lock()
				visits = append(visits, addr)
				n := len(visits)
				if first == "" {
					first = addr
				}
				refused := addr == first && n < 3
				mu.Unlock()
				if refused {
					return draining()
				}
				if err := welcome(s); err != nil {
					return err
				}
				if n > 2 {
					<-s.Context().Done()
					return nil
				}
				<-stop
				return draining()
			}})
			servers = append(servers, g)
			group.Go(func() { g.Serve(p) })
		}
		dial := func(ctx context.Context, addr string) (net.Conn, error) {
			conn, err := conns[addr].dial(ctx, addr)
			return named{conn, addr}, err
		}
		c, err := runnel.Dial("a:1,b:1,c:1", runnel.WithDialOptions(grpc.WithContextDialer(dial)), runnel.WithConnectTimeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if len(visits) != 2 || visits[0] == visits[1] {
			t.Errorf("it went to %q", visits)
		}
		mu.Unlock()
		close(stop) // the second ends the stream in the same way
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mu.Lock()
		if len(visits) < 3 || visits[2] == visits[1] {
			t.Errorf("it went to %q", visits)
		}
		mu.Unlock()
		c.Close()
		for _, g := range servers {
			g.Stop()
		}
		group.Wait()
	})
}

// The weighted policy asks for load as the client that it is, and all other calls carry one token, as ever.
func TestWeightedAsksForLoad(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan [3]string, 10)
	g := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(s)
		md, _ := metadata.FromIncomingContext(s.Context())
		calls <- [3]string{method, strings.Join(md.Get("authorization"), ","), strings.Join(md.Get("client-id"), ",")}
		return status.Error(codes.PermissionDenied, "no")
	}))
	var group sync.WaitGroup
	group.Go(func() { g.Serve(l) })
	defer group.Wait()
	defer g.Stop()
	c, err := runnel.Dial(l.Addr().String(), runnel.WithBalancing(runnel.Weighted), runnel.WithToken("secret"), runnel.WithClientID("me"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Publish(t.Context(), "a.b", nil); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for len(seen) < 2 {
		call := <-calls
		if call[1] != "Bearer secret" || call[2] != "me" {
			t.Errorf("%q", call)
		}
		seen[call[0]] = true
	}
	if !seen["/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"] {
		t.Errorf("%v", seen)
	}
}

// Endpoints that servers tell are addresses beside the list: a session goes where it is told, and back to the list when that server stops.
func TestListAndEndpoints(t *testing.T) {
	t.Parallel()
	told, _ := fleet(t, 1, server.Config{DrainNotice: 5 * time.Second})
	all, list := fleet(t, 2, server.Config{DrainNotice: 5 * time.Second, Endpoints: []string{told[0].Addr}})
	client, err := runnel.Dial(list, runnel.WithConnectTimeout(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Session(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		if open(t, s) == 1 {
			s.Stop()
			all = append(all[:i], all[i+1:]...)
			break
		}
	}
	if n := open(t, told[0]); n != 1 {
		t.Errorf("%d sessions are where they were told to go", n)
	}
	told[0].Stop()
	if n := open(t, all[0]); n != 1 {
		t.Errorf("%d sessions are at the server of the list that is left", n)
	}
}

// What is reached in other ways than by an address works as it does for any client of grpc's.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	runneltest.StartServer(t, server.Config{Listener: l})
	for _, target := range []string{"unix:" + path, "unix://" + path} {
		c, err := runnel.Dial(target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Publish(t.Context(), "a.b", nil); err != nil {
			t.Error(err)
		}
		c.Close()
	}
}
