package pebbleengine

import (
	"context"
	"errors"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// tail follows a log: from the ring of recent commits, or from the log itself where the ring no longer reaches back.
type tail struct {
	l      *log
	epoch  string // the tail ends with it
	closed chan struct{}
	once   sync.Once

	next uint64 // guarded by l.mu
}

// Tail implements engine.Log.
func (l *log) Tail(after uint64) (engine.Tail, error) {
	if l.e.ctx.Err() != nil {
		return nil, engine.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &tail{l: l, epoch: l.epochs[len(l.epochs)-1].id, closed: make(chan struct{}), next: after + 1}
	if l.st == nil || t.next > l.head+1 {
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
		defer t.l.mu.Unlock()
		delete(t.l.tails, t)
		t.l.dropLocked()
		t.l.taken.Broadcast()
	})
}

// Next implements engine.Tail.
func (t *tail) Next(ctx context.Context) (engine.Page, error) {
	for {
		page, from, wait, err := t.take()
		switch {
		case err != nil:
			return engine.Page{}, err
		case wait == nil && from == 0:
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
	if _, open := l.tails[t]; !open || l.e.ctx.Err() != nil {
		return page, 0, nil, engine.ErrClosed
	}
	if now := l.epochs[len(l.epochs)-1].id; now != t.epoch {
		return page, 0, nil, &engine.EpochChangedError{Epoch: now, Head: l.head}
	}
	if t.next > l.head {
		return page, 0, l.moved, nil
	}
	for _, r := range l.ring {
		first, last := r.events[0].Offset, r.events[len(r.events)-1].Offset
		if t.next < first {
			break
		}
		if t.next <= last {
			events := r.events[t.next-first:] // offsets of a commit are dense
			t.next = last + 1
			l.taken.Broadcast()
			return engine.Page{Events: events, Scanned: last}, 0, nil, nil
		}
	}
	return page, t.next, nil, nil
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
	t.next = page.Scanned + 1
	return page, nil
}

// dropLocked drops commits that every tail has seen, and, where the log can be read instead, those beyond the ring's bound.
func (l *log) dropLocked() {
	next := l.head + 1
	for t := range l.tails {
		next = min(next, t.next)
	}
	i := 0
	for ; i < len(l.ring); i++ {
		r := l.ring[i]
		seen := r.events[len(r.events)-1].Offset < next
		if !seen && (l.st == nil || l.bytes <= maxRing) {
			break
		}
		l.bytes -= r.bytes
	}
	clear(l.ring[:i])
	l.ring = l.ring[i:]
}

// awaitTailsLocked waits until the ring has room: without a log a tail must see every commit. Tails are read by this process
// alone and never wait for a client, so this is short.
func (l *log) awaitTailsLocked() {
	for l.bytes > maxRing && len(l.tails) > 0 && l.e.ctx.Err() == nil {
		l.dropLocked()
		if l.bytes <= maxRing {
			return
		}
		l.taken.Wait()
	}
}

// everything matches all topics of a namespace.
var everything topic.Pattern
