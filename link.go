package runnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sony/gobreaker/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/peer"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// link is a way to a server. The client has one, and others as long as something still uses them.
type link struct {
	target string
	*channel
	breaker *gobreaker.CircuitBreaker[struct{}] // of calls; streams have their own backoff

	// Guarded by the client's mu.
	users int
	old   bool       // to be closed when nobody uses it
	more  []*channel // for streams that the first has no room for
}

// channel is grpc's connection to the server, which comes and goes.
type channel struct {
	detour  *detour
	conn    *grpc.ClientConn
	api     runnelv1.StreamServiceClient
	admin   runnelv1.AdminServiceClient
	streams int // guarded by the client's mu
}

// streamsPerChannel is how many streams share a connection. A server takes more (Limits.max_streams), but beyond its limit a stream would
// wait in silence, and what streams do on one connection waits for each other.
const streamsPerChannel = 100

// channel makes a connection. Where the target leads to several addresses it does not lead to the one to avoid, for a while.
func (c *Client) channel(target, avoid string) (*channel, error) {
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
	return &channel{detour: d, conn: conn, api: runnelv1.NewStreamServiceClient(conn), admin: runnelv1.NewAdminServiceClient(conn)}, nil
}

func (ch *channel) close() error {
	ch.detour.close()
	return ch.conn.Close()
}

// dial makes a link with one user. Its first connection avoids an address for a while, where there are others.
func (c *Client) dial(target, avoid string) (*link, error) {
	first, err := c.channel(target, avoid)
	if err != nil {
		return nil, err
	}
	return &link{target: target, channel: first, breaker: newBreaker(first), users: 1}, nil
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
		c.close(l) // the error says that it is closed
	}
}

func (c *Client) close(l *link) error {
	c.mu.Lock()
	more := l.more
	l.more = nil
	c.mu.Unlock()
	for _, ch := range more {
		ch.close()
	}
	return l.channel.close()
}

// stream returns a channel of the link with room for one more stream. left must be called for it while the link is still in use.
func (c *Client) stream(l *link) (*channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	for _, ch := range append([]*channel{l.channel}, l.more...) {
		if ch.streams < c.perChannel {
			ch.streams++
			return ch, nil
		}
	}
	ch, err := c.channel(l.target, "") // connects later
	if err != nil {
		return nil, err
	}
	ch.streams++
	l.more = append(l.more, ch)
	return ch, nil
}

func (c *Client) left(l *link, ch *channel) {
	c.mu.Lock()
	ch.streams--
	i := slices.Index(l.more, ch)
	idle := i >= 0 && ch.streams == 0
	if idle {
		l.more = slices.Delete(l.more, i, i+1)
	}
	c.mu.Unlock()
	if idle {
		ch.close()
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

// mostSpread bounds what a server may ask for, and backShare is the part of it that clients take which can only come back to the same
// server. That a connection breaks mostly means a fault on the way; mostBack bounds how long it is then felt.
const (
	mostSpread = 30 * time.Second
	backShare  = 10
	mostBack   = time.Second
)

// spreads keeps the time over which a server wants its clients to go elsewhere.
func (c *Client) spreads(ms uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spread = min(time.Duration(ms)*time.Millisecond, mostSpread)
}

// spreading is a random part of the time over which clients leave a server that is gone without a word, or come back to it.
func (c *Client) spreading(back bool) time.Duration {
	c.mu.Lock()
	most := c.spread
	c.mu.Unlock()
	if back {
		most = min(most/backShare, mostBack)
	}
	return rand.N(most + 1)
}

// welcomed keeps what the server says of itself. Calls that are no streams are left a tenth of what a connection may carry.
func (c *Client) welcomed(w *runnelv1.Welcome) {
	c.learn(w.GetEndpoints())
	c.spreads(w.GetSpreadMs())
	if most := int(w.GetLimits().GetMaxStreams()); most > 0 {
		c.mu.Lock()
		c.perChannel = min(streamsPerChannel, max(most-(most+9)/10, 1))
		c.mu.Unlock()
	}
}

// failed goes on to another server, if one is known, where a link leads to none that serves.
func (c *Client) failed(l *link, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Code != codes.Unavailable && e.Code != codes.DeadlineExceeded {
		return
	}
	draining := e.Reason == reasonDraining
	if !draining {
		if l.conn.GetState() == connectivity.Ready && l.breaker.State() != gobreaker.StateOpen {
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

// backSpread is the time over which the sessions of a client come back with a connection.
const backSpread = 100 * time.Millisecond

// wait waits before a session is opened again: for its turn, or until the connection that was away is back, which grpc sees to. What the
// server has asked for (atLeast) is waited for in any case.
func (c *Client) wait(ctx context.Context, b *retry, atLeast time.Duration) error {
	l := c.use()
	defer c.done(l)
	turn, cancel := context.WithTimeout(ctx, b.next(atLeast))
	defer cancel()
	state := l.conn.GetState()
	if atLeast > 0 || state == connectivity.Ready {
		<-turn.Done()
		return ctx.Err()
	}
	for ; state != connectivity.Ready; state = l.conn.GetState() {
		if !l.conn.WaitForStateChange(turn, state) {
			return ctx.Err()
		}
	}
	soon, cancel := context.WithTimeout(turn, rand.N(backSpread))
	defer cancel()
	<-soon.Done()
	return ctx.Err()
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
