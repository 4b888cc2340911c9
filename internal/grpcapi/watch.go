package grpcapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/broker"
)

// warnBefore is how long before its end a session is told that its token expires, or half of what is left if that is less.
const warnBefore = time.Minute

// watch begins to look after a stream. What is revoked from here on ends it; what was revoked before is found here.
func (g *Guard) watch(c *caller) error {
	g.mu.Lock()
	g.streams[c] = struct{}{}
	policy := g.policy
	g.mu.Unlock()
	if policy == nil {
		return nil
	}
	if id := &c.access.Load().Identity; g.cfg.Revocations.Revoked(id, c.client) {
		g.leave(c)
		return errUnauthenticated
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scheduleLocked()
	return nil
}

func (g *Guard) leave(c *caller) {
	g.mu.Lock()
	_, watched := g.streams[c]
	delete(g.streams, c)
	g.mu.Unlock()
	c.mu.Lock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	if watched {
		c.limits.Close()
	}
}

// scheduleLocked sets the timer for what comes next: the warning, then the end.
func (c *caller) scheduleLocked() {
	id := &c.access.Load().Identity
	if c.over || id.Expires.IsZero() {
		return
	}
	left := time.Until(id.Expires)
	wait := left
	if !c.warned && c.stream != nil {
		wait = left - min(warnBefore, left/2)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = time.AfterFunc(max(wait, 0), c.due)
}

// due warns, or ends the stream. A token that was renewed meanwhile starts anew.
func (c *caller) due() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	expires := c.access.Load().Identity.Expires
	switch left := time.Until(expires); {
	case left <= 0:
		c.over = true
		c.end(errExpired)
		c.note(audit.Cut, slog.String("reason", "expired"))
	case c.stream != nil && !c.warned && left <= warnBefore+time.Second:
		c.warned = true
		c.stream.expiring(expires)
		c.scheduleLocked()
	default:
		c.scheduleLocked()
	}
}

// end ends the stream for a reason.
func (c *caller) end(err error) {
	if c.stream != nil {
		c.stream.one.End(err)
		return
	}
	c.cancel(err)
}

// attach makes the caller's session known: it can be warned, and lose single subscriptions.
func (c *caller) attach(st *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream, c.session = st, st.id
	if c.access.Load() != nil {
		c.scheduleLocked()
	}
}

func (c *caller) detach() {
	c.mu.Lock()
	c.stream, c.over = nil, true
	c.mu.Unlock()
}

// note writes to the audit log.
func (c *caller) note(kind audit.Kind, values ...slog.Attr) {
	if c.g.cfg.Audit == nil {
		return
	}
	all := []slog.Attr{slog.String("client", c.client), slog.String("address", c.address())}
	if a := c.access.Load(); a != nil && a.Identity.Subject != "" {
		all = append(all, slog.String("subject", a.Identity.Subject))
	}
	if c.session == "" {
		all = append(all, slog.String("method", c.method))
	}
	key, id := c.Origin()
	all = append(all, slog.String(key, id))
	c.g.cfg.Audit.Note(kind, append(all, values...)...)
}

// refresh replaces the caller's token by one of the same subject, and returns when that expires.
func (c *caller) refresh(ctx context.Context, token string) (time.Time, error) {
	g := c.g
	old := c.access.Load()
	if old == nil || g.cfg.Verifier == nil {
		return time.Time{}, errAuthOff
	}
	id, err := g.cfg.Verifier.Verify(ctx, token)
	if err == nil {
		certified, _ := g.certificate(c.conn)
		id = auth.Join(id, certified)
		switch {
		case id.Subject != old.Identity.Subject || id.Issuer != old.Identity.Issuer:
			err = errors.New("the new token is of another subject or issuer")
		case c.client != id.Subject && !slices.Contains(id.Clients, c.client):
			err = errClientID
		case g.cfg.Revocations.Revoked(&id, c.client):
			err = auth.ErrRevoked
		}
	}
	if err != nil {
		g.refused(err)
		c.note(audit.Refused, slog.String("reason", err.Error()))
		return time.Time{}, errUnauthenticated
	}
	g.mu.Lock()
	policy := g.policy
	g.mu.Unlock()
	c.mu.Lock()
	c.warned = false
	c.access.Store(policy.Access(id))
	c.scheduleLocked()
	c.mu.Unlock()
	// Whoever revoked between the look above and the change has looked at the old token.
	if g.cfg.Revocations.Revoked(&id, c.client) {
		c.sever()
	}
	c.note(audit.Refreshed, slog.Time("expires", id.Expires))
	return id.Expires, nil
}

// sever closes the connection at once, so that nothing of what waits in it is still sent.
func (c *caller) sever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(audit.Cut, slog.String("reason", "revoked"))
	if c.conn != nil {
		c.conn.sever()
	}
	if c.cancel != nil {
		c.cancel(errUnauthenticated)
	}
	if c.stream != nil {
		c.stream.one.End(errUnauthenticated)
	}
}

// Sever cuts all streams whose callers were revoked, and returns how many.
func (g *Guard) Sever() int {
	n := 0
	for _, c := range g.all() {
		if a := c.access.Load(); a != nil && g.cfg.Revocations.Revoked(&a.Identity, c.client) {
			c.sever()
			n++
		}
	}
	return n
}

func (g *Guard) all() []*caller {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*caller, 0, len(g.streams))
	for c := range g.streams {
		all = append(all, c)
	}
	return all
}

// Administrator returns the caller's client id, if it may act on the whole server; else an error that is a status.
func (g *Guard) Administrator(ctx context.Context) (string, error) {
	c, err := callerOf(ctx)
	if err == nil && (!c.access.Load().Everywhere(auth.Admin) || c.access.Load() == nil && !c.local()) {
		err = &broker.ForbiddenError{Verb: "administer", Pattern: "this server"}
	}
	if err != nil {
		return "", statusOf(err).Err()
	}
	return c.client, nil
}

// local reports whether the caller is on this machine. Where nobody is authenticated, to be here is what makes an administrator: others might
// stop the server.
func (c *caller) local() bool {
	tcp, ok := c.peer.(*net.TCPAddr)
	return c.peer != nil && (!ok || tcp.IP.IsLoopback())
}

// Expires is when a token that a stream uses expires; false if none does.
func (g *Guard) Expires(tokenID string) (time.Time, bool) {
	for _, c := range g.all() {
		if a := c.access.Load(); a != nil && tokenID != "" && a.Identity.TokenID == tokenID {
			return a.Identity.Expires, true
		}
	}
	return time.Time{}, false
}

// SetPolicy puts new roles in force, for streams that are open too: what they no longer may ends.
func (g *Guard) SetPolicy(p *auth.Policy) {
	g.mu.Lock()
	g.policy = p
	g.mu.Unlock()
	for _, c := range g.all() {
		old := c.access.Load()
		if old == nil {
			continue
		}
		// A token that is renewed meanwhile gets the new roles by itself.
		if c.access.CompareAndSwap(old, p.Access(old.Identity)) {
			c.recheck()
		}
	}
}

// recheck ends the subscriptions that are no longer wholly allowed.
func (c *caller) recheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream != nil {
		c.stream.recheck()
	}
}
