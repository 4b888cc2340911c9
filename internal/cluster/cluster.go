// Package cluster knows the nodes that share a cluster: each announces itself to all every two seconds, so that who is not heard for a
// while is gone. Nothing is stored, and nobody leads.
//
// It guarantees that of two nodes with one id only one joins while both hear each other (see join.go), and that what it says of others is
// at most a lifetime old, or marked as stale. Messages may be lost, come twice, or come from somebody who means no good: they are bounded, and
// decide nothing but what is shown to operators, which addresses clients are told, and whether a node may join.
//
// All methods are safe for concurrent use, but Join comes before Run.
package cluster

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Times of the protocol. They are the same on every node.
const (
	every     = 2 * time.Second         // between two announcements, give or take a tenth
	atLeast   = 50 * time.Millisecond   // between two that were asked for
	lifetime  = 7500 * time.Millisecond // three announcements and a margin
	staleFrom = 5 * time.Second         // not having heard oneself: messages do not get through
	keep      = time.Minute             // how long a view is kept that is stale
	complain  = time.Minute             // between two complaints about the same
)

const (
	version    = 1 // of messages; a node ignores those with another
	maxMessage = 4 << 10
	maxNodes   = 1000
	maxText    = 256 // bytes of an address, host name or version
	maxOffered = 16
)

// Bus carries messages between nodes. A message reaches each node that listens, the sender too, or is lost.
type Bus interface {
	Send(message []byte) error
	// Listen calls f with each message, one after the other, until stop, which waits for a call that runs.
	Listen(f func(message []byte)) (stop func(), err error)
}

// Facts are what a node says of itself: the figures of a moment.
type Facts struct {
	Sessions      int     `json:"sessions,omitempty"`
	Subscriptions int     `json:"subscriptions,omitempty"`
	Namespaces    int     `json:"namespaces,omitempty"`
	In            float64 `json:"in,omitempty"`   // events published per second
	Out           float64 `json:"out,omitempty"`  // events delivered per second
	Load          float64 `json:"load,omitempty"` // from 0 to 1
	Draining      bool    `json:"draining,omitempty"`
	Trouble       bool    `json:"trouble,omitempty"` // it takes no events
}

// Node is one node.
type Node struct {
	ID       string `json:"id"`
	Instance string `json:"instance"` // of the process: random
	Started  int64  `json:"started"`  // Unix milliseconds
	// Address is where clients reach it; empty if it does not know one.
	Address string `json:"address,omitempty"`
	Host    string `json:"host,omitempty"` // machine and port, for people
	Version string `json:"version,omitempty"`
	Facts
	Heard time.Time `json:"-"` // when it was last heard
	Self  bool      `json:"-"`
}

// The kinds of messages.
const (
	kindHere  = "here"  // a node that has joined says how it is
	kindAsk   = "ask"   // a node that is about to join asks who is there
	kindTaken = "taken" // a node tells another that it has its id
	kindGone  = "gone"  // a node says good-bye
)

type message struct {
	V    int    `json:"v"`
	Kind string `json:"kind"`
	To   string `json:"to,omitempty"` // instance; taken only
	Node
}

// Config is what a Cluster works with.
type Config struct {
	Bus    Bus
	Self   Node         // but for its Facts; Instance is filled in
	Facts  func() Facts // of this node, now
	Logger *slog.Logger
}

// Cluster is the view of one node.
type Cluster struct {
	cfg  Config
	stop func()        // of the bus
	wake chan struct{} // holds a value when an announcement is due at once

	mu      sync.Mutex
	nodes   map[string]*Node // the others, by instance
	joined  bool
	joining chan *Node // receives who has the id, while it joins
	heard   time.Time  // when it heard itself
	away    bool       // it has not, for too long
	told    time.Time  // of the last complaint
}

// message is what this node sends.
func (c *Cluster) message(kind, to string) message {
	n := c.cfg.Self
	if kind == kindHere {
		n.Facts = c.cfg.Facts()
	}
	return message{V: version, Kind: kind, To: to, Node: n}
}

// send sends; what fails is as good as lost, and shows by this node not hearing itself.
func (c *Cluster) send(m message) {
	if b, err := json.Marshal(m); err == nil {
		_ = c.cfg.Bus.Send(b)
	}
}

// Run announces this node until ctx ends, and then says good-bye. The node must have joined.
func (c *Cluster) Run(ctx context.Context) {
	defer c.stop()
	for {
		c.send(c.message(kindHere, ""))
		due := time.NewTimer(every + time.Duration((rand.Float64()-0.5)*0.2*float64(every)))
		select {
		case <-time.After(atLeast):
		case <-ctx.Done():
		}
		select {
		case <-due.C:
		case <-c.wake:
		case <-ctx.Done():
		}
		due.Stop()
		if ctx.Err() != nil {
			c.send(c.message(kindGone, ""))
			return
		}
		c.look()
	}
}

// Announce tells the others now how this node is.
func (c *Cluster) Announce() { c.send(c.message(kindHere, "")) }

// look forgets who is gone.
func (c *Cluster) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookLocked()
}

func (c *Cluster) lookLocked() {
	now := time.Now()
	if !c.away && now.Sub(c.heard) > staleFrom {
		c.away = true
		c.cfg.Logger.Warn("nodes do not hear each other through NATS; what is known of them is old")
	}
	for instance, n := range c.nodes {
		if old := now.Sub(n.Heard); !c.away && old > lifetime || old > keep {
			delete(c.nodes, instance)
			c.cfg.Logger.Warn("a node is gone without a word", "node", n.ID, "address", n.Address)
		}
	}
}

// receive takes in a message, and answers it.
func (c *Cluster) receive(b []byte) {
	var m message
	if len(b) > maxMessage || json.Unmarshal(b, &m) != nil || m.V != version || !m.sound() {
		return
	}
	c.mu.Lock()
	kind, to := c.takeLocked(&m)
	c.mu.Unlock()
	if kind != "" {
		c.send(c.message(kind, to))
	}
}

// takeLocked takes in a message and returns what to answer; empty: nothing.
func (c *Cluster) takeLocked(m *message) (kind, to string) {
	self := &c.cfg.Self
	if m.Instance == self.Instance {
		if m.Kind == kindHere {
			return c.echoLocked(), ""
		}
		return "", ""
	}
	if m.ID == self.ID {
		kind, to = c.rivalLocked(m)
	}
	switch m.Kind {
	case kindHere:
		c.hereLocked(&m.Node)
	case kindAsk:
		if !c.joined {
			break
		}
		select { // Run announces, once for all who ask at the same time
		case c.wake <- struct{}{}:
		default:
		}
	case kindGone:
		if n := c.nodes[m.Instance]; n != nil {
			delete(c.nodes, m.Instance)
			c.cfg.Logger.Info("a node has left", "node", n.ID, "address", n.Address)
		}
	}
	return kind, to
}

// echoLocked takes in that this node heard itself, so that messages get through. Where they did not before the others are asked for, and get
// time to answer.
func (c *Cluster) echoLocked() (kind string) {
	now := time.Now()
	c.heard = now
	if !c.away {
		return ""
	}
	c.away = false
	c.cfg.Logger.Info("nodes hear each other again")
	for _, n := range c.nodes {
		n.Heard = now
	}
	return kindAsk
}

// hereLocked takes in what a node says of itself.
func (c *Cluster) hereLocked(n *Node) {
	now := time.Now()
	old := c.nodes[n.Instance]
	if old == nil {
		// Who joins under the id of another is that node anew: it has made sure that the other is not there.
		for instance, other := range c.nodes {
			if other.ID == n.ID {
				delete(c.nodes, instance)
			}
		}
		if len(c.nodes) >= maxNodes {
			return
		}
		if c.joined {
			c.cfg.Logger.Info("a node has come", "node", n.ID, "address", n.Address)
		}
	}
	n.Heard, n.Self = now, false
	c.nodes[n.Instance] = n
}

// sound reports whether a message is what a node would say.
func (m *message) sound() bool {
	for _, s := range []string{m.ID, m.Instance, m.Address, m.Host, m.Version, m.To} {
		if len(s) > maxText || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			return false
		}
	}
	f := &m.Facts
	return m.ID != "" && m.Instance != "" && f.Load >= 0 && f.Load <= 1 && f.In >= 0 && f.Out >= 0 && f.Sessions >= 0 && f.Subscriptions >= 0 && f.Namespaces >= 0
}

// Nodes returns all nodes by id, this one too. stale says that this node no longer hears the others, and what is said of them is old.
func (c *Cluster) Nodes() (list []Node, stale bool) {
	self := c.cfg.Self
	self.Facts, self.Self, self.Heard = c.cfg.Facts(), true, time.Now()
	c.mu.Lock()
	c.lookLocked()
	list = append(list, self)
	for _, n := range c.nodes {
		list = append(list, *n)
	}
	stale = c.away
	c.mu.Unlock()
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.ID+" "+a.Instance, b.ID+" "+b.Instance) })
	return list, stale
}

// Elsewhere returns addresses of other nodes that take clients, at most 16, in a random order in which those with less load tend to come first:
// whoever tries them in this order spreads.
func (c *Cluster) Elsewhere() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookLocked()
	type candidate struct {
		address string
		rank    float64
	}
	var list []candidate
	for _, n := range c.nodes {
		if n.Address == "" || n.Draining || n.Trouble || local(n.Address) && !c.sameMachine(n) || n.Address == c.cfg.Self.Address {
			continue
		}
		// A weighted draw without replacement: the smallest of exponential variates, each with the rate of its weight.
		list = append(list, candidate{n.Address, rand.ExpFloat64() / max(1-n.Load, 0.05)})
	}
	slices.SortFunc(list, func(a, b candidate) int {
		if a.rank < b.rank {
			return -1
		}
		return 1
	})
	var out []string
	for _, one := range list[:min(len(list), maxOffered)] {
		out = append(out, one.address)
	}
	return out
}
