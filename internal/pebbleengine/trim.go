package pebbleengine

import (
	"context"

	"github.com/runnelhq/runnel/internal/engine"
)

// trimming is one Trim on its way through the committer.
type trimming struct {
	upTo uint64
	err  error
	done chan struct{} // closed when err is set
}

// Trim implements engine.Log.
func (l *log) Trim(ctx context.Context, upTo uint64) (uint64, error) {
	if l.st == nil {
		return 0, engine.ErrNoHistory
	}
	t := &trimming{upTo: upTo, done: make(chan struct{})}
	select {
	case l.trims <- t:
	case <-l.stopped:
		return 0, l.ended()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-t.done:
	case <-l.stopped: // the committer's last, or it never came to it
		select {
		case <-t.done:
		default:
			return 0, l.ended()
		}
	}
	return l.State().Oldest, t.err
}

// trimTo moves the trim point behind an offset. It needs no free space to speak of, so that it helps where the disk is full.
func (l *log) trimTo(upTo uint64) error {
	db, err := l.st.acquire()
	if err != nil {
		return err
	}
	defer l.st.release()
	if err := l.st.failure(); err != nil {
		return err
	}
	t := l.trim
	t.moveTo(max(t.oldest, min(upTo, l.next-1)+1))
	return l.moveTrim(db, t)
}
