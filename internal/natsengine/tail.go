package natsengine

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

const (
	maxRing = 8 << 20 // bytes of recent events that a log keeps in memory
	// allRings bounds what all logs keep together, but for leastRing each.
	allRings  = 256 << 20
	leastRing = 64 << 10
	// eventCost is what an event costs in a ring beside its bytes, its id among them.
	eventCost = 200
	// A page from the ring takes groups together up to these bounds.
	tailEvents = 1024
	tailBytes  = 256 << 10
)

// ring holds recent events, oldest first, in groups as they came.
type ring struct {
	groups []recent
	bytes  int
}

// recent is a group of events. Their offsets are dense.
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
	r.groups = append(r.groups, recent{events, bytes})
	r.bytes += bytes
}

// drop takes the oldest group away.
func (r *ring) drop() {
	r.bytes -= r.groups[0].bytes
	r.groups[0] = recent{}
	r.groups = r.groups[1:]
}

// find returns the number of the first group that ends at an offset or above.
func (r *ring) find(offset uint64) int {
	i, _ := slices.BinarySearchFunc(r.groups, offset, func(c recent, offset uint64) int {
		if c.last() < offset {
			return -1
		}
		return 1
	})
	return i
}

// from returns the events from offset next on, a page of them; none if the ring does not hold that one.
func (r *ring) from(next uint64) []engine.Event {
	i := r.find(next)
	if i == len(r.groups) || r.groups[i].events[0].Offset > next {
		return nil
	}
	bytes := r.groups[i].bytes
	events := r.groups[i].events[next-r.groups[i].events[0].Offset:]
	events = slices.Clip(events) // shared with other tails: never appended to in place
	for _, c := range r.groups[i+1:] {
		bytes += c.bytes
		follows := c.events[0].Offset == events[len(events)-1].Offset+1
		if !follows || len(events)+len(c.events) > tailEvents || bytes > tailBytes {
			break
		}
		events = append(events, c.events...)
	}
	return events
}

// above is the first offset behind next that the ring holds; 0 if there is none.
func (r *ring) above(next uint64) uint64 {
	if i := r.find(next); i < len(r.groups) {
		return max(next, r.groups[i].events[0].Offset)
	}
	return 0
}

// tail follows a log: from the ring of recent events, or from the stream where the ring does not reach back.
type tail struct {
	l      *log
	epoch  string // the tail ends with it
	closed chan struct{}
	once   sync.Once

	next uint64 // guarded by l.mu
}

// Tail implements engine.Log. A log without history is followed from now on.
func (l *log) Tail(after uint64) (engine.Tail, error) {
	l.e.mu.Lock()
	closed := l.e.closed
	l.e.mu.Unlock()
	if closed {
		return nil, engine.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return nil, l.lost
	}
	t := &tail{l: l, epoch: l.epoch, closed: make(chan struct{}), next: after + 1}
	if !l.kept {
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
	if t.l.lost != nil {
		return t.l.lost
	}
	if now := t.l.epoch; now != t.epoch {
		return &engine.EpochChangedError{Epoch: now, Head: t.l.head}
	}
	return nil
}

// readLog is a page from the stream. What retention took before the tail came by is listed as damaged. While NATS is away the
// tail waits for it.
func (t *tail) readLog(ctx context.Context, from uint64) (engine.Page, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.l.e.ctx, cancel)()
	var page engine.Page
	err := retry(ctx, func() (err error) {
		page, err = t.l.Read(ctx, engine.ReadRequest{After: from - 1})
		return err
	})
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		page = engine.Page{Scanned: gone.Oldest - 1, Damaged: []engine.Range{{From: from, To: gone.Oldest - 1}}}
		err = nil
	}
	if t.l.e.ctx.Err() != nil {
		err = engine.ErrClosed
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

// retry calls f until it does something else than not reach NATS.
func retry(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if !errors.Is(err, engine.ErrUnavailable) {
			return err
		}
		if pause(ctx, n) != nil {
			return ctx.Err()
		}
	}
}

// tailMoved tells a feed that waits for tails to look again.
func (l *log) tailMoved() {
	select {
	case l.taken <- struct{}{}:
	default:
	}
}

// dropLocked drops groups beyond the ring's bound. Where the log cannot be read instead, it drops those that every tail has seen,
// and no others.
func (l *log) dropLocked() {
	if l.kept {
		for len(l.ring.groups) > 0 && l.ring.bytes > l.e.ringBytes() {
			l.ring.drop()
		}
		if len(l.ring.groups) > 0 {
			l.recall.forget(l.ring.groups[0].events[0].Offset)
		}
		return
	}
	next := l.head + 1
	for t := range l.tails {
		next = min(next, t.next)
	}
	for len(l.ring.groups) > 0 && l.ring.groups[0].last() < next {
		l.ring.drop()
	}
}

// awaitTails waits until the ring has room: without a log, a tail must see every event in it. Tails are read by this process
// alone and never wait for a client, so this is short.
func (l *log) awaitTails() {
	for !l.hasRoom() {
		select {
		case <-l.taken:
		case <-l.ctx.Done():
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
