package pebbleengine

import (
	"context"
	"errors"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/ring"
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
	if l.st == nil || after > now.Head {
		after = now.Head
	}
	return l.recent.Follow(now.Epoch, after), nil
}

// NowLocked implements ring.Log. A log that cannot be read for now may be read again.
func (l *log) NowLocked() (ring.Now, error) {
	switch {
	case l.e.ctx.Err() != nil:
		return ring.Now{}, engine.ErrClosed
	case errors.Is(l.lost, engine.ErrDeleted):
		return ring.Now{}, engine.ErrDeleted
	}
	return ring.Now{Epoch: l.epochLocked(), Head: l.head, Moved: l.moved}, nil
}

// ReadBack implements ring.Log.
func (l *log) ReadBack(ctx context.Context, after uint64) (engine.Page, error) {
	return l.Read(ctx, engine.ReadRequest{After: after})
}

// DropLocked implements ring.Log: it drops commits that every tail has seen, and, where the log can be read instead, those beyond the bound.
func (l *log) DropLocked() {
	most := ring.MaxBytes
	if l.st == nil {
		most = 0
	}
	l.recent.DropSeen(l.head, most)
}
