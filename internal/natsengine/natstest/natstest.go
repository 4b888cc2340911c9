// Package natstest runs NATS servers inside a test: one, or a cluster of three, whose servers can be stopped, killed and started
// again. It is for tests only.
package natstest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// TB is what a cluster needs of a test.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// patience is how long a cluster may take to be ready.
const patience = 30 * time.Second

// Cluster is one NATS server, or several that are a cluster with JetStream.
type Cluster struct {
	t       TB
	options []*server.Options
	routes  *routes // nil: they hear each other directly

	mu      sync.Mutex
	servers []*server.Server // nil: not running
}

// Option changes the options of every server.
type Option func(*server.Options)

// New starts n servers, on ports of 127.0.0.1 that are free, and stops them when the test is over.
func New(t TB, n int, change ...Option) *Cluster {
	t.Helper()
	return newCluster(t, n, nil, change)
}

func newCluster(t TB, n int, r *routes, change []Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t, routes: r, servers: make([]*server.Server, n)}
	ports := freePorts(t, 2*n)
	var routes []*url.URL
	for i := range n {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[n+i])})
	}
	dir := t.TempDir()
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprintf("nats-%d", i), Host: "127.0.0.1", Port: ports[i], NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: filepath.Join(dir, fmt.Sprint(i)), JetStreamMaxStore: 8 << 30, JetStreamMaxMemory: 2 << 30,
			DisableJetStreamBanner: true, MaxPayload: 4 << 20,
		}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[n+i]}
			o.Routes = routes
		}
		for _, f := range change {
			f(o)
		}
		c.options = append(c.options, o)
	}
	t.Cleanup(c.Close)
	for i := range n {
		c.Start(i)
	}
	c.WaitReady()
	return c
}

// Ports below those that systems give out by themselves: many clusters run beside each other, with clients and proxies, and a server that
// was stopped must find its port free. No process gives one out twice; two processes begin at different places.
const firstPort, ports = 16000, 16000

var nextPort atomic.Int64

func init() { nextPort.Store(int64(os.Getpid()) * 199 % ports) }

// freePorts finds ports that are free.
func freePorts(t TB, n int) (list []int) {
	t.Helper()
	for range ports {
		if len(list) == n {
			return list
		}
		port := firstPort + int(nextPort.Add(1)%ports)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			list = append(list, port)
		}
	}
	t.Fatalf("no port is free")
	return nil
}

// URL is where a server listens.
func (c *Cluster) URL(i int) string {
	return fmt.Sprintf("nats://127.0.0.1:%d", c.options[i].Port)
}

// URLs are where the servers listen.
func (c *Cluster) URLs() (list []string) {
	for i := range c.options {
		list = append(list, c.URL(i))
	}
	return list
}

// Size is how many servers there are, running or not.
func (c *Cluster) Size() int { return len(c.options) }

// Start starts a server that does not run, on what it has stored.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	o := c.options[i].Clone()
	s, err := server.NewServer(o)
	if err != nil {
		c.t.Fatalf("nats-server: %v", err)
	}
	c.routes.runs(i, s.ID())
	s.Start()
	if !s.ReadyForConnections(patience) {
		c.t.Fatalf("nats-server %d does not listen", i)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers[i] = s
}

// Stop stops a server, and waits until it has stopped. It may be stopped already.
func (c *Cluster) Stop(i int) {
	c.mu.Lock()
	s := c.servers[i]
	c.servers[i] = nil
	c.mu.Unlock()
	if s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// Close stops all.
func (c *Cluster) Close() {
	for i := range c.options {
		c.Stop(i)
	}
}

// Leader is the server that leads a stream; -1 while none does.
func (c *Cluster) Leader(stream string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.servers {
		if s != nil && (len(c.servers) == 1 || s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream)) {
			return i
		}
	}
	return -1
}

// WaitReady waits until JetStream takes requests: a leader is known, and all running servers are current.
func (c *Cluster) WaitReady() {
	c.t.Helper()
	c.eventually("JetStream is not ready", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		leads, running := false, 0
		for i, s := range c.servers {
			if s == nil {
				continue
			}
			running++
			if !c.options[i].JetStream {
				return true
			}
			if !s.JetStreamEnabled() {
				return false
			}
			leads = leads || s.JetStreamIsLeader()
			if len(c.servers) > 1 && !s.JetStreamIsCurrent() {
				return false
			}
		}
		if len(c.servers) == 1 {
			return running == 1
		}
		for _, s := range c.servers {
			if s != nil && s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) < running {
				return false
			}
		}
		return leads
	})
}

// WaitHealthy waits until every running server says that its streams are up to date.
func (c *Cluster) WaitHealthy() {
	c.t.Helper()
	c.eventually("the cluster does not become healthy", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.servers {
			if s != nil && s.Healthz(nil).Status != "ok" {
				return false
			}
		}
		return true
	})
}

func (c *Cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			c.t.Fatalf("%s", what)
		}
	}
}

// LeaderOfAny is a server that leads some stream; -1 while none does.
func (c *Cluster) LeaderOfAny() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.servers {
		if s == nil {
			continue
		}
		j, err := s.Jsz(&server.JSzOptions{Streams: true, Accounts: true})
		if err != nil {
			continue
		}
		for _, a := range j.AccountDetails {
			for _, stream := range a.Streams {
				if stream.Cluster != nil && stream.Cluster.Leader == s.Name() {
					return i
				}
			}
		}
	}
	return -1
}
