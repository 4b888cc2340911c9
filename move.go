package runnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// link is a way to a server: grpc's, and so with connections that come and go. The client has one, and others as long as something still
// uses them.
type link struct {
	target string
	conn   *grpc.ClientConn
	api    runnelv1.StreamServiceClient
	admin  runnelv1.AdminServiceClient

	users int  // guarded by the client's mu
	old   bool // to be closed when nobody uses it; guarded by the client's mu
}

// dial makes a link with one user.
func (c *Client) dial(target string) (*link, error) {
	conn, err := grpc.NewClient(target, c.dialing...)
	if err != nil {
		return nil, err
	}
	return &link{target: target, conn: conn, api: runnelv1.NewStreamServiceClient(conn), admin: runnelv1.NewAdminServiceClient(conn), users: 1}, nil
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
		l.conn.Close() // the error says that it is closed
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
	if !errors.As(err, &e) || e.Code != codes.Unavailable || e.Reason != reasonDraining && l.conn.GetState() == connectivity.Ready {
		return
	}
	c.mu.Lock()
	endpoints := c.endpoints
	c.mu.Unlock()
	if len(endpoints) == 0 || c.ctx.Err() != nil {
		return
	}
	others := others(l.target, append([]string{c.target}, endpoints...))
	if len(others) == 0 {
		return
	}
	next, err := c.dial(others[0])
	if err != nil {
		return // no address at all
	}
	c.replace(l, next)
	c.retire(next)
}

// retire is done for a link that one has made oneself: nobody else is to use it unless it has become the client's.
func (c *Client) retire(l *link) {
	c.mu.Lock()
	l.old = c.link != l
	c.mu.Unlock()
	c.done(l)
}

// others are the targets but one, in random order, each once.
func others(but string, targets []string) (list []string) {
	seen := map[string]bool{but: true}
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
	targets := others(m.from.link.target, m.endpoints)
	if len(targets) == 0 {
		// A new connection to the same address leads to another server where there is a load balancer.
		targets = []string{m.s.c.target}
	}
	var b retry
	for i := 0; ; i++ {
		if m.open(ctx, targets[i%len(targets)]) {
			break
		}
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

// open opens a stream at a target, or where another session of the client has already gone.
func (m *mover) open(ctx context.Context, target string) bool {
	s, c := m.s, m.s.c
	l := c.use()
	if l == m.from.link {
		c.done(l)
		var err error
		if l, err = c.dial(target); err != nil {
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
