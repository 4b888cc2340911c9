package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"
)

// How a node makes sure that nobody else has its id: it asks who is there, several times, since messages may be lost. Who has the id, or is
// about to and comes before, answers with taken, to this instance. Of two that ask at once the one that began earlier comes before, then the
// one with the smaller instance; both compare the same values, so exactly one goes on, if at least one of their messages gets through.
//
// A node that was killed does not answer, so one that is started again under its id joins; as soon as the others hear the new instance they
// forget the old one. Two that join while they do not hear each other are both there afterwards: each complains in its log.
const (
	asks    = 3
	askGap  = 150 * time.Millisecond
	patient = 500 * time.Millisecond // in all
)

// TakenError says that another node has the id.
type TakenError struct{ ID, Host string }

func (e *TakenError) Error() string {
	return fmt.Sprintf("node id %q is in use by %s: choose another with --node", e.ID, e.Host)
}

// Join makes this node one of the cluster, and begins to listen. It takes half a second. Without error Run must follow, or Leave.
func Join(ctx context.Context, cfg Config) (*Cluster, error) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	cfg.Self.Instance = hex.EncodeToString(b[:])
	c := &Cluster{cfg: cfg, wake: make(chan struct{}, 1), nodes: map[string]*Node{}, joining: make(chan *Node, 1), heard: time.Now()}
	stop, err := cfg.Bus.Listen(c.receive)
	if err != nil {
		return nil, err
	}
	c.stop = stop
	if err := c.ask(ctx); err != nil {
		stop()
		return nil, err
	}
	return c, nil
}

// ask asks who is there, until nobody has said for long enough that the id is taken.
func (c *Cluster) ask(ctx context.Context) error {
	late := time.NewTimer(patient)
	defer late.Stop()
	again := time.NewTicker(askGap)
	defer again.Stop()
	for left := asks; ; {
		if left > 0 {
			left--
			c.send(c.message(kindAsk, ""))
		}
		select {
		case n := <-c.joining:
			return &TakenError{n.ID, n.where()}
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			continue
		case <-late.C:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case n := <-c.joining: // at the last moment
			return &TakenError{n.ID, n.where()}
		default:
		}
		c.joined, c.heard = true, time.Now()
		return nil
	}
}

// Leave ends a Cluster that will not run.
func (c *Cluster) Leave() {
	c.send(c.message(kindGone, ""))
	c.stop()
}

// where says for people where a node is.
func (n *Node) where() string {
	if n.Host != "" {
		return n.Host
	}
	return n.Address
}

// rivalLocked deals with another instance that has, or wants, this node's id. It returns what to answer.
func (c *Cluster) rivalLocked(m *message) (kind, to string) {
	self := &c.cfg.Self
	switch {
	case m.Kind == kindAsk && (c.joined || before(self, &m.Node)):
		return kindTaken, m.Instance
	case c.joined:
		// It did not hear this one when it joined, or came from elsewhere with NATS.
		if m.Kind == kindHere && time.Since(c.told) > complain {
			c.told = time.Now()
			c.cfg.Logger.Error("another node has the same id; give one of the two another with --node", "node", m.ID, "host", m.where())
		}
	case m.Kind == kindAsk, m.Kind == kindTaken && m.To == self.Instance:
		select {
		case c.joining <- &m.Node:
		default:
		}
	}
	return "", ""
}

// before reports which of two nodes that ask at once goes on.
func before(a, b *Node) bool {
	return a.Started < b.Started || a.Started == b.Started && a.Instance < b.Instance
}

// local reports whether an address means another machine to everybody.
func local(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// sameMachine reports whether a node runs where this one does.
func (c *Cluster) sameMachine(n *Node) bool {
	machine := func(host string) string {
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			return host[:i]
		}
		return host
	}
	return machine(n.Host) == machine(c.cfg.Self.Host)
}
