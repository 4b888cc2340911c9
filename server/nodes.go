package server

import (
	"cmp"
	"context"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/cluster"
	"github.com/runnelhq/runnel/internal/natsengine"
)

// nodes is this server among those that share its cluster; on its own without one.
type nodes struct {
	s       *Server
	cluster *cluster.Cluster // nil: it stands alone

	mu        sync.Mutex // guards what rates are taken from
	at        time.Time
	published uint64
	delivered uint64
	in, out   float64
}

// joinTimeout bounds how long a start asks who else is there.
const joinTimeout = 10 * time.Second

// join makes the server one of the nodes of its cluster, where there is one.
func (s *Server) join() error {
	s.nodes = &nodes{s: s, at: s.started}
	e, shared := s.engine.(*natsengine.Engine)
	if !shared {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	defer cancel()
	c, err := cluster.Join(ctx, cluster.Config{Bus: e.Bus("nodes"), Self: s.self(), Facts: s.nodes.facts, Logger: s.cfg.Logger})
	if err != nil {
		return err
	}
	s.nodes.cluster = c
	return nil
}

// self is what does not change about this node.
func (s *Server) self() cluster.Node {
	listen := s.Addr().String()
	address := cmp.Or(s.cfg.Advertise, listen)
	if wildcard(address) { // it stands for all of the machine's
		address = ""
	}
	host, _ := os.Hostname() // without a name the address will do
	if _, port, err := net.SplitHostPort(listen); err == nil {
		host = net.JoinHostPort(plainNode(host), port)
	}
	return cluster.Node{ID: s.node, Started: s.started.UnixMilli(), Address: address, Host: host, Version: cmp.Or(s.cfg.Version, "devel")}
}

// facts are how this node is.
func (n *nodes) facts() cluster.Facts {
	s := n.s
	f := cluster.Facts{
		Sessions: int(s.meter.Sessions.Load()), Subscriptions: int(s.meter.Subscriptions.Load()), Namespaces: s.engine.Figures().Namespaces,
		Load: min(s.utilization(), 1), Draining: s.draining.Load(), Trouble: s.engine.Health() != nil,
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now, published, delivered := time.Now(), s.accepted.Load(), s.meter.Events.Load()
	if past := now.Sub(n.at); past >= rateOver {
		n.in, n.out = float64(published-n.published)/past.Seconds(), float64(delivered-n.delivered)/past.Seconds()
		n.at, n.published, n.delivered = now, published, delivered
	}
	f.In, f.Out = n.in, n.out
	return f
}

// run tells the others of this node until ctx ends.
func (n *nodes) run(ctx context.Context) {
	if n.cluster != nil {
		n.cluster.Run(ctx)
	}
}

// leave ends what join has begun, if run does not.
func (n *nodes) leave() {
	if n.cluster != nil {
		n.cluster.Leave()
	}
}

// drain tells the others that nobody is to come here any more.
func (n *nodes) drain() {
	n.s.draining.Store(true)
	if n.cluster != nil {
		n.cluster.Announce()
	}
}

// elsewhere is where clients may go: other nodes, and then what is configured.
func (n *nodes) elsewhere() []string {
	var list []string
	if n.cluster != nil {
		list = n.cluster.Elsewhere()
	}
	for _, e := range n.s.cfg.Endpoints {
		if !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	return list
}

// notice is how long a session goes on that is told to move: where nothing is configured, some time if there is another node to move to.
func (n *nodes) notice() time.Duration {
	if n.s.cfg.DrainNotice == 0 && len(n.elsewhere()) > 0 {
		return min(defaultNotice, n.s.cfg.DrainTimeout/4)
	}
	return n.s.cfg.DrainNotice
}

// spread is the time over which sessions are told to move: likewise.
func (n *nodes) spread() time.Duration {
	if n.s.cfg.DrainSpread == 0 && len(n.elsewhere()) > 0 {
		return min(defaultSpread, n.s.cfg.DrainTimeout/2)
	}
	return n.s.cfg.DrainSpread
}

// list describes all nodes.
func (n *nodes) list() *runnelv1.ListNodesResponse {
	var all []cluster.Node
	r := &runnelv1.ListNodesResponse{}
	if n.cluster != nil {
		all, r.Stale = n.cluster.Nodes()
	} else {
		self := n.s.self()
		self.Facts, self.Self, self.Heard = n.facts(), true, time.Now()
		all = append(all, self)
	}
	for _, one := range all {
		r.Nodes = append(r.Nodes, &runnelv1.NodeInfo{
			Node: one.ID, Address: one.Address, Host: one.Host, Version: one.Version, StartedMs: one.Started,
			Sessions: uint32(one.Sessions), Subscriptions: uint32(one.Subscriptions), Namespaces: uint32(one.Namespaces),
			PublishedPerS: one.In, DeliveredPerS: one.Out, Load: one.Load, Draining: one.Draining, Trouble: one.Trouble,
			HeardMs: one.Heard.UnixMilli(), Self: one.Self,
		})
	}
	r.NowMs = time.Now().UnixMilli()
	return r
}
