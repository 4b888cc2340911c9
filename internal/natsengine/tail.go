package natsengine

import (
	"context"
	"errors"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

const (
	maxRing = 8 << 20 // bytes of recent events that a log keeps in memory
	// allRings bounds what all logs keep together, but for leastRing each.
	allRings  = 256 << 20
	leastRing = 64 << 10
	// idCost is what the id of an event in the ring costs.
	idCost = 104
)

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
	if events := l.ring.From(t.next); len(events) > 0 {
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
		first, _, ok := l.ring.Oldest()
		for ; ok && l.ring.Bytes() > l.e.ringBytes(); first, _, ok = l.ring.Oldest() {
			l.ring.Drop()
		}
		if ok {
			l.recall.forget(first)
		}
		return
	}
	next := l.head + 1
	for t := range l.tails {
		next = min(next, t.next)
	}
	for _, last, ok := l.ring.Oldest(); ok && last < next; _, last, ok = l.ring.Oldest() {
		l.ring.Drop()
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
	return l.ring.Bytes() <= maxRing
}
