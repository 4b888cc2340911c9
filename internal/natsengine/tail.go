package natsengine

import (
	"context"
	"errors"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/ring"
)

const (
	// allRings bounds what all logs keep of recent events together, but for leastRing each.
	allRings  = 256 << 20
	leastRing = 64 << 10
	// idCost is what the id of an event in the ring costs.
	idCost = 104
)

var _ ring.Log = (*log)(nil)

// Tail implements engine.Log. A log without history is followed from now on.
func (l *log) Tail(after uint64) (engine.Tail, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := l.NowLocked()
	if err != nil {
		return nil, err
	}
	if !l.kept {
		after = now.Head
	}
	return l.recent.Follow(now.Epoch, after), nil
}

// NowLocked implements ring.Log.
func (l *log) NowLocked() (ring.Now, error) {
	switch {
	case l.e.ctx.Err() != nil:
		return ring.Now{}, engine.ErrClosed
	case l.lost != nil:
		return ring.Now{}, l.lost
	}
	return ring.Now{Epoch: l.epoch, Head: l.head, Moved: l.moved}, nil
}

// ReadBack implements ring.Log. While NATS is away it waits.
func (l *log) ReadBack(ctx context.Context, after uint64) (page engine.Page, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.e.ctx, cancel)()
	err = retry(ctx, func() (err error) {
		page, err = l.Read(ctx, engine.ReadRequest{After: after})
		return err
	})
	if l.e.ctx.Err() != nil {
		err = engine.ErrClosed
	}
	return page, err
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

// DropLocked implements ring.Log: it drops events beyond the bound, or, where the log cannot be read instead, those that every tail has seen.
func (l *log) DropLocked() {
	if !l.kept {
		l.recent.DropSeen(l.head, 0)
		return
	}
	first, _, ok := l.recent.Oldest()
	for ; ok && l.recent.Bytes() > l.e.ringBytes(); first, _, ok = l.recent.Oldest() {
		l.recent.Drop()
	}
	if !ok {
		first = l.head + 1
	}
	l.recall.forget(first)
}
