package pebbleengine

import (
	"context"
	"errors"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

const maxRing = 8 << 20 // bytes of recent events kept for tails

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
	for _, last, ok := l.ring.Oldest(); ok; _, last, ok = l.ring.Oldest() {
		if last >= next && (l.st == nil || l.ring.Bytes() <= maxRing) {
			return
		}
		l.ring.Drop()
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
	return l.ring.Bytes() <= maxRing
}
