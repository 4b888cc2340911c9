package runnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/peer"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// link is a way to a server: grpc's, and so with connections that come and go. The client has one, and others as long as something still
// uses them.
type link struct {
	target string
	detour *detour
	conn   *grpc.ClientConn
	api    runnelv1.StreamServiceClient
	admin  runnelv1.AdminServiceClient

	users int  // guarded by the client's mu
	old   bool // to be closed when nobody uses it; guarded by the client's mu
}

// dial makes a link with one user. Where the target leads to several addresses it does not lead to the one to avoid, for a while.
func (c *Client) dial(target, avoid string) (*link, error) {
	to, err := c.o.destination(target)
	if err != nil {
		return nil, err
	}
	d := newDetour(to.builder, avoid)
	conn, err := grpc.NewClient(to.target, append(slices.Clip(c.dialing), d.option())...)
	if err != nil {
		d.close()
		return nil, err
	}
	return &link{
		target: target, detour: d, conn: conn, api: runnelv1.NewStreamServiceClient(conn), admin: runnelv1.NewAdminServiceClient(conn), users: 1,
	}, nil
}

func (l *link) close() error {
	l.detour.close()
	return l.conn.Close()
}

// use returns the client's link. done must be called for it.
func (c *Client) use() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link.users++
	return c.link
}

func (c *Client) done(l *link) {
	c.mu.Lock()
	l.users--
	idle := l.old && l.users == 0
	c.mu.Unlock()
	if idle {
		l.close() // the error says that it is closed
	}
}

// replace makes next the client's link, if from still is.
func (c *Client) replace(from, next *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != from || c.ctx.Err() != nil {
		return false
	}
	from.users--
	from.old = true
	next.users++
	c.link = next
	return true
}

// learn keeps what the server says of where else to go.
func (c *Client) learn(endpoints []string) {
	if len(endpoints) == 0 {
		return
	}
	c.mu.Lock()
	c.endpoints = endpoints
	c.mu.Unlock()
}

// failed goes on to another server, if one is known, where a link leads to none that serves.
func (c *Client) failed(l *link, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Code != codes.Unavailable {
		return
	}
	draining := e.Reason == reasonDraining
	if !draining {
		if l.conn.GetState() == connectivity.Ready {
			return
		}
		l.detour.end() // the one that was avoided may be the only one left
	}
	c.mu.Lock()
	endpoints := c.endpoints
	c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	var targets []string
	if len(endpoints) > 0 {
		targets = others(append([]string{c.target}, endpoints...), l.target, e.at)
	}
	avoid := ""
	if draining {
		avoid = e.at
	}
	if len(targets) == 0 {
		// The connection stays with a server as long as it has one: away from one that stops leads only a new one.
		if avoid == "" || !l.detour.others(avoid) {
			return
		}
		targets = []string{l.target}
	}
	next, err := c.dial(targets[0], avoid)
	if err != nil {
		return // no address at all
	}
	c.replace(l, next)
	c.retire(next)
}

// sent goes on to another server if the one that has ended a stream is about to stop.
func (c *Client) sent(away *opened, err error) {
	var e *Error
	if errors.As(err, &e) && e.Reason == reasonDraining {
		e.at = away.at
		c.mu.Lock()
		away.link.users++ // or nobody would close it
		c.mu.Unlock()
		c.failed(away.link, err)
		c.done(away.link)
	}
}

// peerOf is the address of the server that a stream is with; empty if it has come to none.
func peerOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	return p.Addr.String()
}

// at notes in an error which server it comes from.
func at(err error, address string) error {
	var e *Error
	if errors.As(err, &e) {
		e.at = address
	}
	return err
}

// retire is done for a link that one has made oneself: nobody else is to use it unless it has become the client's.
func (c *Client) retire(l *link) {
	c.mu.Lock()
	l.old = c.link != l
	c.mu.Unlock()
	c.done(l)
}

// others are the targets but for some, in random order, each once.
func others(targets []string, but ...string) (list []string) {
	seen := map[string]bool{}
	for _, t := range but {
		seen[t] = true
	}
	for _, t := range targets {
		if !seen[t] {
			seen[t] = true
			list = append(list, t)
		}
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// mover opens a stream elsewhere while the one that is to be left still works.
type mover struct {
	s         *Session
	from      *opened
	endpoints []string
	within    time.Duration

	next *opened // set when run has succeeded
}

// settle is the part of its notice that a session takes for acknowledgements of what it has published on the old stream.
const settle = 4

// run ends the old stream when there is another. If there is none in time the old one is left to its end.
func (m *mover) run() {
	ctx, cancel := context.WithTimeout(m.from.ctx, m.within)
	defer cancel()
	targets := others(m.endpoints, m.from.link.target, m.from.at)
	if len(targets) == 0 {
		// A new connection to the same target leads to another server where it has several addresses, or there is a load balancer.
		targets = []string{m.s.c.target}
	}
	var b retry
	avoid := "" // a session that has to move because it is old may come to the same server again: only so it ends up anywhere equally often
	for i := 0; ; i++ {
		if m.open(ctx, targets[i%len(targets)], avoid) {
			break
		}
		avoid = m.from.at
		if b.wait(ctx, 0) != nil {
			return
		}
	}
	// What is on its way is acknowledged here rather than sent again there. From now on nothing new is sent.
	m.s.mu.Lock()
	m.s.online = false
	m.s.mu.Unlock()
	settled, stop := context.WithTimeout(ctx, m.within/settle)
	defer stop()
	_ = m.s.Flush(settled) // what is not acknowledged by then is sent again, as after any other break
	m.from.cancel()
}

// open opens a stream at a target, but not at the address to avoid, or where another session of the client has already gone.
func (m *mover) open(ctx context.Context, target, avoid string) bool {
	s, c := m.s, m.s.c
	l := c.use()
	if l == m.from.link {
		c.done(l)
		var err error
		if l, err = c.dial(target, avoid); err != nil {
			return false
		}
	}
	// The new stream outlives the old one, but not while it is being opened.
	open, cancel := context.WithCancel(s.ctx)
	stop := context.AfterFunc(ctx, cancel)
	next, _, err := s.open(open, l, "")
	if err == nil && !stop() {
		next.watch.Stop()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		c.retire(l)
		return false
	}
	c.mu.Lock()
	l.users++ // the stream's use and ours
	c.mu.Unlock()
	c.replace(m.from.link, l)
	c.retire(l)
	context.AfterFunc(next.ctx, cancel)
	m.next = next
	return true
}
