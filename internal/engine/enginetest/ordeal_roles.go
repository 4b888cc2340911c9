package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/history"
	"github.com/runnelhq/runnel/internal/topic"
)

// writer publishes, and sends again what it does not know the fate of.
type writer struct {
	o       *ordeal
	n       int
	rng     *rand.Rand
	next    int
	unknown []func() engine.Entry
}

func newWriter(o *ordeal, n int, rng *rand.Rand) *writer { return &writer{o: o, n: n, rng: rng} }

func (w *writer) run(ctx context.Context, l, other engine.Log) {
	for ctx.Err() == nil && !w.o.gone() {
		if w.rng.IntN(2) == 0 {
			// Nobody looks at the other log. It is there because engines let logs share commits, files and syncs.
			_, _ = other.Append(ctx, []engine.Entry{w.o.g.entry(beside+".a", "", "x")}, engine.AppendEach)
		}
		makers := w.compose()
		entries := make([]engine.Entry, len(makers))
		for i, m := range makers {
			entries[i] = m()
		}
		mode := engine.AppendMode(w.rng.IntN(2))
		err := w.o.a.try(ctx, l, mode, entries, w.o.gone)
		w.o.left.count()
		if err == nil {
			continue
		}
		w.unknown = append(w.unknown, makers...)
		if errors.Is(err, engine.ErrStorageFailed) || errors.Is(err, engine.ErrUnavailable) {
			select { // it takes a while until storage is reopened
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// compose chooses what to send: new events, some of them conditional, or one of unknown fate.
func (w *writer) compose() []func() engine.Entry {
	if n := len(w.unknown); n > 0 && w.rng.IntN(2) == 0 {
		again := w.unknown[n-1]
		w.unknown = w.unknown[:n-1]
		return []func() engine.Entry{again}
	}
	var list []func() engine.Entry
	for range 1 + w.rng.IntN(4) {
		name := fmt.Sprintf("n.w.%d", w.n)
		if w.rng.IntN(3) == 0 {
			name = "n.shared"
		}
		id := fmt.Sprintf("%d-%d", w.n, w.next)
		w.next++
		conditional, expected := w.rng.IntN(4) == 0, w.rng.Uint64N(40)
		payload := fmt.Sprint(id, w.rng.Uint64())
		if conditional && w.rng.IntN(2) == 0 {
			name, expected = "n.once."+id, 0 // holds, and no longer when it is sent again
		}
		list = append(list, func() engine.Entry {
			e := w.o.g.dedup(name, id, payload)
			e.Conditional, e.Expected = conditional, expected
			return e
		})
		if w.rng.IntN(8) == 0 {
			list = append(list, list[len(list)-1])
		}
	}
	return list
}

// follower follows the log through all ends, as a session would: it presents its position, and reads or tails from there.
type follower struct {
	o       *ordeal
	tails   bool // it tails; else it reads pages
	pattern topic.Pattern
	sub     *history.Subscriber
	pos     engine.Position
	begun   bool
}

func newFollower(o *ordeal, n int, p topic.Pattern) *follower {
	return &follower{o: o, tails: n%2 == 0, pattern: p, sub: o.a.rec.Subscriber(fmt.Sprintf("follower %d of %s", n, p), p)}
}

func (f *follower) run(ctx context.Context, l engine.Log) {
	for ctx.Err() == nil && f.resume(l) {
		err := f.follow(ctx, l)
		f.sub.Disconnected()
		var changed *engine.EpochChangedError
		switch {
		case errors.As(err, &changed), err == nil, errors.Is(err, engine.ErrUnavailable):
		case errors.Is(err, engine.ErrClosed), ctx.Err() != nil:
			return
		default:
			f.o.g.Errorf("follower of %s at %+v: %v", f.pattern, f.pos, err)
			return
		}
	}
}

// resume presents the position. False: the engine is going down.
func (f *follower) resume(l engine.Log) bool {
	for {
		epoch := f.o.a.now(l)
		err := l.Check(f.pos)
		s := l.State()
		if f.o.gone() {
			return false
		}
		if f.o.a.now(l) != epoch || s.Epoch != epoch {
			continue
		}
		var changed *engine.EpochChangedError
		var gone *engine.PositionGoneError
		p := history.Position(f.pos)
		switch {
		case !f.begun:
		case err == nil:
			f.sub.Resumed(p, epoch)
			f.pos.Epoch = epoch
			return true
		case errors.As(err, &changed):
			f.sub.EpochChanged(p, epoch)
		case errors.As(err, &gone):
			f.sub.PositionGone(p, epoch)
		default:
			f.o.g.Errorf("check %+v: %v", f.pos, err)
			return false
		}
		f.begun = true
		f.pos = engine.Position{Epoch: epoch, Offset: s.Oldest - 1}
		f.sub.Subscribed(history.Position(f.pos))
		return true
	}
}

// follow follows until something ends it; nil if the epoch has changed.
func (f *follower) follow(ctx context.Context, l engine.Log) error {
	t, err := l.Tail(f.pos.Offset)
	if err != nil {
		return err
	}
	defer t.Close()
	if f.o.a.now(l) != f.pos.Epoch {
		return nil // the tail may be of the next one
	}
	for {
		page, err := t.Next(ctx)
		if !f.tails && err == nil {
			// The tail only says that there is something.
			page, err = l.Read(ctx, engine.ReadRequest{Pattern: f.pattern, After: f.pos.Offset, MaxEvents: 5})
			if f.o.a.now(l) != f.pos.Epoch {
				return nil
			}
		}
		var gone *engine.PositionGoneError
		if errors.As(err, &gone) && gone.Oldest > f.pos.Offset+1 {
			page, err = engine.Page{Scanned: gone.Oldest - 1, Damaged: []engine.Range{{From: f.pos.Offset + 1, To: gone.Oldest - 1}}}, nil
		}
		switch {
		case f.o.gone():
			return engine.ErrClosed
		case err != nil:
			return err
		}
		f.o.a.page(f.sub, f.pattern, f.pos.Epoch, page)
		f.pos.Offset = max(f.pos.Offset, page.Scanned)
		f.o.left.count()
	}
}

// finish reads to the head, which nobody moves any more.
func (f *follower) finish(l engine.Log) {
	f.o.cut.Store(false)
	if !f.resume(l) {
		return
	}
	for head := l.State().Head; f.pos.Offset < head; {
		page, err := l.Read(f.o.g.ctx, engine.ReadRequest{Pattern: f.pattern, After: f.pos.Offset})
		var gone *engine.PositionGoneError
		switch {
		case errors.As(err, &gone) && gone.Oldest > f.pos.Offset+1:
			f.sub.Notice(runnelv1.NoticeKind_NOTICE_KIND_GAP, f.pos.Offset+1, gone.Oldest-1, 0)
			f.pos.Offset = gone.Oldest - 1
			continue
		case err != nil || page.Scanned <= f.pos.Offset:
			f.o.g.Errorf("read after %d: %+v, %v", f.pos.Offset, page, err)
			return
		}
		f.o.a.page(f.sub, f.pattern, f.pos.Epoch, page)
		f.pos.Offset = page.Scanned
	}
	f.sub.Complete(f.pos.Offset)
}
