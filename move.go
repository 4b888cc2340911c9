package runnel

import (
	"context"
	"time"
)

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
		c.left(l, next.channel)
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
