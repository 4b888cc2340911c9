package pebbleengine

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

const (
	maxRing = 8 << 20 // bytes of recent events kept for tails
	// eventCost is what an event costs in a ring beside its bytes.
	eventCost = 96
	// A page from the ring takes commits together up to these bounds.
	tailEvents = 1024
	tailBytes  = 256 << 10
)

// ring holds the events of recent commits for the tails, oldest first. Commits may be missing, but never a part of one.
type ring struct {
	commits []recent
	bytes   int
}

// recent is the events of one commit. Their offsets are dense.
type recent struct {
	events []engine.Event
	bytes  int
}

func (r recent) last() uint64 { return r.events[len(r.events)-1].Offset }

func (r *ring) add(events []engine.Event) {
	if len(events) == 0 {
		return
	}
	bytes := eventCost * len(events)
	for i := range events {
		bytes += len(events[i].Wire)
	}
	r.commits = append(r.commits, recent{events, bytes})
	r.bytes += bytes
}

// drop takes the oldest commit away.
func (r *ring) drop() {
	r.bytes -= r.commits[0].bytes
	r.commits[0] = recent{}
	r.commits = r.commits[1:]
}

// from returns the events from offset next on, a page of them; none if the ring does not hold that one.
func (r *ring) from(next uint64) []engine.Event {
	i, _ := slices.BinarySearchFunc(r.commits, next, func(c recent, next uint64) int {
		if c.last() < next {
			return -1
		}
		return 1
	})
	if i == len(r.commits) || r.commits[i].events[0].Offset > next {
		return nil
	}
	bytes := r.commits[i].bytes
	events := r.commits[i].events[next-r.commits[i].events[0].Offset:]
	events = slices.Clip(events) // shared with other tails: never appended to in place
	for _, c := range r.commits[i+1:] {
		bytes += c.bytes
		follows := c.events[0].Offset == events[len(events)-1].Offset+1
		if !follows || len(events)+len(c.events) > tailEvents || bytes > tailBytes {
			break
		}
		events = append(events, c.events...)
	}
	return events
}

// tail follows a log: from the ring of recent commits, or from the log itself where the ring does not reach back.
type tail struct {
	l      *log
	epoch  string // the tail ends with it
	closed chan struct{}
	once   sync.Once

	next uint64 // guarded by l.mu
}

// Tail implements engine.Log. A log without history is followed from now on.
func (l *log) Tail(after uint64) (engine.Tail, error) {
	if l.e.ctx.Err() != nil {
		return nil, engine.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.lost, engine.ErrDeleted) {
		return nil, engine.ErrDeleted
	}
	t := &tail{l: l, epoch: l.epochLocked(), closed: make(chan struct{}), next: after + 1}
	if l.st == nil || after > l.head {
		t.next = l.head + 1
	}
	l.tails[t] = struct{}{}
	return t, nil
}

// Close implements engine.Tail.
func (t *tail) Close() {
	t.once.Do(func() {
		close(t.closed)
		t.l.mu.Lock()
		delete(t.l.tails, t)
		t.l.dropLocked()
		t.l.mu.Unlock()
		t.l.tailMoved()
	})
}

// Next implements engine.Tail.
func (t *tail) Next(ctx context.Context) (engine.Page, error) {
	for {
		page, from, wait, err := t.take()
		switch {
		case err != nil:
			return engine.Page{}, err
		case len(page.Events) > 0:
			t.l.tailMoved()
			return page, nil
		case wait == nil:
			return t.readLog(ctx, from)
		}
		select {
		case <-wait:
		case <-t.closed:
			return engine.Page{}, engine.ErrClosed
		case <-t.l.e.ctx.Done():
			return engine.Page{}, engine.ErrClosed
		case <-ctx.Done():
			return engine.Page{}, ctx.Err()
		}
	}
}

// take returns a page from the ring, or where to read the log from, or what to wait for.
func (t *tail) take() (page engine.Page, from uint64, wait <-chan struct{}, err error) {
	l := t.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := t.overLocked(); err != nil {
		return page, 0, nil, err
	}
	if t.next > l.head {
		return page, 0, l.moved, nil
	}
	if events := l.ring.from(t.next); len(events) > 0 {
		last := events[len(events)-1].Offset
		t.next = last + 1
		return engine.Page{Events: events, Scanned: last}, 0, nil, nil
	}
	return page, t.next, nil, nil
}

// overLocked is why the tail is over; nil if it is not.
func (t *tail) overLocked() error {
	if _, open := t.l.tails[t]; !open || t.l.e.ctx.Err() != nil {
		return engine.ErrClosed
	}
	if errors.Is(t.l.lost, engine.ErrDeleted) {
		return engine.ErrDeleted
	}
	if now := t.l.epochLocked(); now != t.epoch {
		return &engine.EpochChangedError{Epoch: now, Head: t.l.head}
	}
	return nil
}

// readLog is a page from the log. What retention took before the tail came by is listed as damaged.
func (t *tail) readLog(ctx context.Context, from uint64) (engine.Page, error) {
	page, err := t.l.Read(ctx, engine.ReadRequest{After: from - 1})
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		page = engine.Page{Scanned: gone.Oldest - 1, Damaged: []engine.Range{{From: from, To: gone.Oldest - 1}}}
		err = nil
	}
	if err != nil {
		return engine.Page{}, err
	}
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	if err := t.overLocked(); err != nil { // the page may be of another epoch
		return engine.Page{}, err
	}
	t.next = page.Scanned + 1
	return page, nil
}

// tailMoved tells a committer that waits for tails to look again.
func (l *log) tailMoved() {
	select {
	case l.taken <- struct{}{}:
	default:
	}
}

// dropLocked drops commits that every tail has seen, and, where the log can be read instead, those beyond the ring's bound.
func (l *log) dropLocked() {
	next := l.head + 1
	for t := range l.tails {
		next = min(next, t.next)
	}
	for len(l.ring.commits) > 0 {
		seen := l.ring.commits[0].last() < next
		if !seen && (l.st == nil || l.ring.bytes <= maxRing) {
			return
		}
		l.ring.drop()
	}
}

// awaitTails waits until the ring has room: without a log, a tail must see every commit in it. Tails are read by this process
// alone and never wait for a client, so this is short.
func (l *log) awaitTails() {
	for !l.hasRoom() {
		select {
		case <-l.taken:
		case <-l.e.ctx.Done():
			return
		}
	}
}

func (l *log) hasRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked()
	return l.ring.bytes <= maxRing
}
