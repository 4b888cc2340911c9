package etcdtest

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/resolver"

	"github.com/runnelhq/runnel/discovery/etcd"
)

// cluster is an etcd of one node that can be stopped and started again.
type cluster struct {
	t    *testing.T
	cfg  *embed.Config
	node *embed.Etcd
	runs bool
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	any, err := url.Parse("http://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.LogOutputs = t.TempDir(), "fatal", []string{"/dev/null"}
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{*any}, []url.URL{*any}
	c := &cluster{t: t, cfg: cfg}
	c.start()
	t.Cleanup(c.end)
	return c
}

// end stops etcd, if it runs.
func (c *cluster) end() {
	if c.runs {
		c.runs = false
		c.node.Close()
	}
}

func (c *cluster) start() {
	c.t.Helper()
	var err error
	for range 50 { // the port of one that has just stopped may not be free at once
		if c.node, err = embed.StartEtcd(c.cfg); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.runs = true
	<-c.node.Server.ReadyNotify()
	addr, err := url.Parse("http://" + c.addr())
	if err != nil {
		c.t.Fatal(err)
	}
	c.cfg.ListenClientUrls = []url.URL{*addr} // the same from now on
}

func (c *cluster) addr() string { return c.node.Clients[0].Addr().String() }

func (c *cluster) client() *clientv3.Client {
	c.t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.addr()}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}}),
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// told is what a client connection is told.
type told struct {
	resolver.ClientConn
	mu      sync.Mutex
	changed chan struct{}
	servers []string
}

func (c *told) UpdateState(s resolver.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = nil
	for _, e := range s.Endpoints {
		c.servers = append(c.servers, e.Addresses[0].Addr)
	}
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return nil
}

func (c *told) ReportError(error) {}

// wait waits for a list of servers.
func (c *told) wait(t *testing.T, want ...string) {
	t.Helper()
	c.until(t, func(got []string) bool { return slices.Equal(got, want) })
}

// waitFor waits for so many servers.
func (c *told) waitFor(t *testing.T, n int) []string {
	t.Helper()
	return c.until(t, func(got []string) bool { return len(got) == n })
}

func (c *told) until(t *testing.T, right func([]string) bool) []string {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		c.mu.Lock()
		got := slices.Clone(c.servers)
		c.mu.Unlock()
		if right(got) {
			return got
		}
		select {
		case <-c.changed:
		case <-deadline:
			t.Fatalf("servers %q", got)
		}
	}
}

var prefix = clientv3.WithPrefix()

func resolve(t *testing.T, client *clientv3.Client, service string) *told {
	t.Helper()
	c := &told{changed: make(chan struct{}, 1)}
	r, err := etcd.NewResolver(client).Build(resolver.Target{URL: url.URL{Scheme: "etcd", Path: "/" + service}}, c, resolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return c
}

func register(t *testing.T, client *clientv3.Client, service, address string) *etcd.Registration {
	t.Helper()
	return registerFor(t, client, service, address, 2*time.Second)
}

func registerFor(t *testing.T, client *clientv3.Client, service, address string, ttl time.Duration) *etcd.Registration {
	t.Helper()
	r, err := etcd.Register(t.Context(), client, service, address, etcd.WithTTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// Servers that register are found, those of another service are not, and those that leave are gone at once.
func TestFindServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	seen := resolve(t, c.client(), "svc")
	a := register(t, c.client(), "svc", "a:1")
	register(t, c.client(), "svc2", "x:1")
	if err := a.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "a:1")
	b := register(t, c.client(), "svc", "b:1")
	seen.wait(t, "a:1", "b:1")
	a.Close()
	seen.wait(t, "b:1")
	register(t, c.client(), "svc", "c:1")
	b.Close()
	seen.wait(t, "c:1")
}

// A server comes back to the list when its lease is lost, and when somebody deletes its key.
func TestListedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	admin := c.client()
	seen := resolve(t, c.client(), "svc")
	register(t, c.client(), "svc", "a:1")
	register(t, c.client(), "svc", "b:1")
	seen.wait(t, "a:1", "b:1")
	const key = etcd.DefaultPrefix + "/svc/a:1"
	res, err := admin.Get(t.Context(), key)
	if err != nil || len(res.Kvs) != 1 {
		t.Fatal(res, err)
	}
	if _, err := admin.Revoke(t.Context(), clientv3.LeaseID(res.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "b:1")
	seen.wait(t, "a:1", "b:1")
	if _, err := admin.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "b:1")
	seen.wait(t, "a:1", "b:1")
}

// While etcd is away everybody goes on with what is known, and what changed meanwhile is known when it is back, although it has compacted
// its history.
func TestOutage(t *testing.T) {
	t.Parallel()
	const ttl = 8 * time.Second // while etcd stops no lease is to expire: it would be an honest change
	c := newCluster(t)
	seen := resolve(t, c.client(), "svc")
	one := registerFor(t, c.client(), "svc", "a:1", ttl)
	registerFor(t, c.client(), "svc", "b:1", ttl)
	seen.wait(t, "a:1", "b:1")
	c.end()
	time.Sleep(ttl + time.Second) // longer than a lease lives
	late := registerFor(t, c.client(), "svc", "c:1", ttl)
	one.Close() // cannot say so
	seen.wait(t, "a:1", "b:1")
	c.start()
	admin := c.client()
	var revision int64
	for range 5 {
		res, err := admin.Put(t.Context(), "/other", strings.Repeat("x", 10))
		if err != nil {
			t.Fatal(err)
		}
		revision = res.Header.Revision
	}
	if _, err := admin.Compact(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	if err := late.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "b:1", "c:1")
}
