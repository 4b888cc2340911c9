// Package hub keeps the newest events of every followed pattern in memory, encoded once, for any number of subscribers.
//
// Each followed pattern has a Feed: a bounded window of wire-ready elements. One follower goroutine per followed namespace
// reads the engine's Tail and adds each event to the feeds that match it. A feed knows its floor: every matching event above
// that offset is in the window. Floor and position count in the namespace, so they move also when nothing matches.
// Publishing never waits for the hub, and the hub never waits for a subscriber.
package hub

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Config bounds the hub. Zero values mean the defaults.
type Config struct {
	WindowBytes int            // of encoded events per feed; default 1 MiB
	LatestBytes int            // of newest-of-key state per conflated feed; default 8 MiB
	Linger      time.Duration  // how long a feed outlives its last subscriber; default 1 minute
	Budget      *budget.Budget // windows count against it
}

// Hub keeps the feeds. Safe for concurrent use.
type Hub struct {
	// Fixed after New.
	engine engine.Engine
	cfg    Config
	ctx    context.Context
	stop   context.CancelFunc
	group  sync.WaitGroup

	mu         sync.Mutex
	namespaces map[string]*namespace
}

// namespace is the follower of one namespace.
type namespace struct {
	h    *Hub
	log  engine.Log
	tail engine.Tail
	// position: everything up to here has been distributed.
	position atomic.Uint64

	mu    sync.Mutex
	over  bool
	index topic.Index[*Feed]
	feeds map[topic.Pattern]*Feed
}

// New starts nothing; the first Open does.
func New(e engine.Engine, cfg Config) *Hub {
	if cfg.WindowBytes == 0 {
		cfg.WindowBytes = 1 << 20
	}
	if cfg.LatestBytes == 0 {
		cfg.LatestBytes = 8 << 20
	}
	if cfg.Linger == 0 {
		cfg.Linger = time.Minute
	}
	h := &Hub{engine: e, cfg: cfg, namespaces: map[string]*namespace{}}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// Open returns the pattern's feed, whose floor is known; the caller must Close it. A subscriber opens its feed before it
// looks at the log, so that nothing falls between the two. conflating: TakeLatest will be called.
func (h *Hub) Open(p topic.Pattern, conflating bool) (*Feed, engine.Log, error) {
	for {
		ns, err := h.namespace(p.Namespace())
		if err != nil {
			return nil, nil, err
		}
		if f := ns.open(p, conflating); f != nil {
			return f, ns.log, nil
		}
		h.forget(ns) // its follower is ending; the next one begins anew
	}
}

func (h *Hub) forget(ns *namespace) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.namespaces[ns.log.Namespace()] == ns {
		delete(h.namespaces, ns.log.Namespace())
	}
}

func (h *Hub) namespace(name string) (*namespace, error) {
	h.mu.Lock()
	ns, err := h.followedLocked(name)
	h.mu.Unlock()
	if ns != nil || err != nil {
		return ns, err
	}
	log, err := h.engine.Log(name) // without the lock: it may wait for a deletion, and other namespaces must not
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if ns, err := h.followedLocked(name); ns != nil || err != nil {
		return ns, err
	}
	// The tail may begin below the position: what it then brings again is above no floor and below no position.
	head := log.State().Head
	tail, err := log.Tail(head)
	if err != nil {
		return nil, err
	}
	ns = &namespace{h: h, log: log, tail: tail, feeds: map[topic.Pattern]*Feed{}}
	ns.position.Store(head)
	h.namespaces[name] = ns
	h.group.Go(ns.follow)
	return ns, nil
}

// followedLocked returns a namespace that is followed, else nil.
func (h *Hub) followedLocked(name string) (*namespace, error) {
	if h.ctx.Err() != nil {
		return nil, engine.ErrClosed
	}
	// The follower of a log that was deleted ends soon. Whoever comes from now on is to follow the next one.
	if ns := h.namespaces[name]; ns != nil && !errors.Is(ns.log.Check(engine.Position{}), engine.ErrDeleted) {
		return ns, nil
	}
	return nil, nil
}

// open returns nil if the follower is over.
func (ns *namespace) open(p topic.Pattern, conflating bool) *Feed {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.over {
		return nil
	}
	f := ns.feeds[p]
	if f == nil {
		f = &Feed{pattern: p, ns: ns}
		// Pages are distributed under the same lock, so this position is a seam between two of them.
		f.w = window{budget: ns.h.cfg.Budget, most: ns.h.cfg.WindowBytes, floor: ns.position.Load()}
		ns.feeds[p] = f
		ns.index.Set(p, f)
	}
	f.refs++
	if conflating {
		if f.conflated++; f.conflated == 1 {
			f.keepLatest(ns.h.cfg.LatestBytes)
		}
	}
	return f
}

// follow distributes the tail's pages until the tail ends or nobody has followed for a while.
func (ns *namespace) follow() {
	defer ns.tail.Close()
	swept := time.Now()
	for {
		ctx, cancel := context.WithTimeout(ns.h.ctx, ns.h.cfg.Linger)
		page, err := ns.tail.Next(ctx)
		cancel()
		switch {
		case err == nil:
			ns.distribute(page)
			if time.Since(swept) < ns.h.cfg.Linger {
				continue
			}
			fallthrough
		case errors.Is(err, context.DeadlineExceeded) && ns.h.ctx.Err() == nil:
			swept = time.Now()
			if !ns.sweep() {
				continue
			}
			err = engine.ErrClosed
		case ns.h.ctx.Err() != nil:
			err = engine.ErrClosed
		}
		ns.finish(err)
		return
	}
}

// distribute adds a page to the feeds that match, then wakes who waits for them.
func (ns *namespace) distribute(page engine.Page) {
	var wake []*Waiter
	ns.mu.Lock()
	var dirty []*Feed
	var e element
	add := func(f *Feed) {
		f.add(&e)
		if !f.dirty {
			f.dirty = true
			dirty = append(dirty, f)
		}
	}
	if len(page.Damaged) > 0 {
		for _, f := range ns.feeds {
			f.breakNumbers(page.Damaged[len(page.Damaged)-1].To)
			f.dirty = true
			dirty = append(dirty, f)
		}
	}
	for i := range page.Events {
		e = element{event: &page.Events[i]}
		ns.index.Match(page.Events[i].Topic, add)
	}
	ns.position.Store(page.Scanned)
	for _, f := range dirty {
		f.dirty = false
		wake = f.wakeable(wake)
	}
	ns.mu.Unlock()
	for _, w := range wake {
		w.Wake()
	}
}

// sweep drops feeds that nobody has followed for a while; true if none is left and the follower is over.
func (ns *namespace) sweep() bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for p, f := range ns.feeds {
		if f.refs == 0 && time.Since(f.idle) >= ns.h.cfg.Linger {
			delete(ns.feeds, p)
			ns.index.Delete(p)
			f.end(engine.ErrClosed) // gives its memory back
		}
	}
	ns.over = len(ns.feeds) == 0
	return ns.over
}

// finish ends all feeds, and the namespace for the hub.
func (ns *namespace) finish(err error) {
	ns.h.forget(ns)
	var wake []*Waiter
	ns.mu.Lock()
	ns.over = true
	for _, f := range ns.feeds {
		f.end(err)
		wake = f.wakeable(wake)
	}
	ns.mu.Unlock()
	for _, w := range wake {
		w.Wake()
	}
}

// Close ends all feeds and waits for the followers.
func (h *Hub) Close() {
	h.stop()
	h.group.Wait()
}
