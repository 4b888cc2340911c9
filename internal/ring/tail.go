package ring

import (
	"context"
	"errors"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

// MaxBytes is what a log may hold of recent events.
const MaxBytes = 8 << 20

// Log is what tails follow. What ends in Locked is called under its lock.
type Log interface {
	// NowLocked says where the log is, or why nobody can follow it any more.
	NowLocked() (Now, error)
	// ReadBack returns a page from behind an offset, for a tail that the ring does not reach back to.
	ReadBack(ctx context.Context, after uint64) (engine.Page, error)
	// DropLocked drops events that need not be held any more.
	DropLocked()
}

// Now is where a log is.
type Now struct {
	Epoch string
	Head  uint64
	Moved <-chan struct{} // closed when it is elsewhere, or over
}

// Recent is the recent events of a log, and its tails. Methods are called under the log's lock unless they say otherwise.
type Recent struct {
	Ring
	mu    *sync.Mutex // the log's
	log   Log
	done  <-chan struct{} // closed with the engine
	tails map[*Tail]struct{}
	taken chan struct{} // receives when a tail has moved or closed
}

// New returns one without events or tails. Done is closed when the log's engine closes.
func New(mu *sync.Mutex, log Log, done <-chan struct{}) *Recent {
	return &Recent{mu: mu, log: log, done: done, tails: map[*Tail]struct{}{}, taken: make(chan struct{}, 1)}
}

// Followed reports whether there are tails.
func (r *Recent) Followed() bool { return len(r.tails) > 0 }

// Clear forgets all events.
func (r *Recent) Clear() { r.Ring = Ring{} }

// Follow returns a tail that begins behind an offset of an epoch.
func (r *Recent) Follow(epoch string, after uint64) *Tail {
	t := &Tail{r: r, epoch: epoch, closed: make(chan struct{}), next: after + 1}
	r.tails[t] = struct{}{}
	return t
}

// DropSeen drops what every tail has seen, up to head, and what is more than some bytes though one has not; 0: nothing of that.
func (r *Recent) DropSeen(head uint64, most int) {
	next := head + 1
	for t := range r.tails {
		next = min(next, t.next)
	}
	for _, last, ok := r.Oldest(); ok; _, last, ok = r.Oldest() {
		if last >= next && (most == 0 || r.Bytes() <= most) {
			return
		}
		r.Drop()
	}
}

// AwaitRoom waits, without the lock, until MaxBytes are not exceeded, or stop is closed: where there is no log to read, a tail must see every
// event here. Tails are read by this process alone and never wait for a client, so this is short.
func (r *Recent) AwaitRoom(stop <-chan struct{}) {
	for !r.hasRoom() {
		select {
		case <-r.taken:
		case <-stop:
			return
		}
	}
}

func (r *Recent) hasRoom() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log.DropLocked()
	return r.Bytes() <= MaxBytes
}

// moved tells whoever waits for room to look again.
func (r *Recent) moved() {
	select {
	case r.taken <- struct{}{}:
	default:
	}
}

// Tail is an engine.Tail: it reads recent events, and the log where they do not reach back. One goroutine may call Next; any may Close.
type Tail struct {
	r      *Recent
	epoch  string // the tail ends with it
	closed chan struct{}
	once   sync.Once

	next uint64 // guarded by the log's lock
}

// Close implements engine.Tail.
func (t *Tail) Close() {
	t.once.Do(func() {
		close(t.closed)
		t.r.mu.Lock()
		delete(t.r.tails, t)
		t.r.log.DropLocked()
		t.r.mu.Unlock()
		t.r.moved()
	})
}

// Next implements engine.Tail.
func (t *Tail) Next(ctx context.Context) (engine.Page, error) {
	for {
		page, from, wait, err := t.take()
		switch {
		case err != nil:
			return engine.Page{}, err
		case len(page.Events) > 0:
			t.r.moved()
			return page, nil
		case wait == nil:
			return t.readBack(ctx, from)
		}
		select {
		case <-wait:
		case <-t.closed:
			return engine.Page{}, engine.ErrClosed
		case <-t.r.done:
			return engine.Page{}, engine.ErrClosed
		case <-ctx.Done():
			return engine.Page{}, ctx.Err()
		}
	}
}

// take returns a page of recent events, or where to read the log from, or what to wait for.
func (t *Tail) take() (page engine.Page, from uint64, wait <-chan struct{}, err error) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	now, err := t.nowLocked()
	if err != nil {
		return page, 0, nil, err
	}
	if t.next > now.Head {
		return page, 0, now.Moved, nil
	}
	if events := t.r.From(t.next); len(events) > 0 {
		last := events[len(events)-1].Offset
		t.next = last + 1
		return engine.Page{Events: events, Scanned: last}, 0, nil, nil
	}
	return page, t.next, nil, nil
}

// nowLocked is where the log is, or why the tail is over.
func (t *Tail) nowLocked() (Now, error) {
	if _, open := t.r.tails[t]; !open {
		return Now{}, engine.ErrClosed
	}
	now, err := t.r.log.NowLocked()
	if err == nil && now.Epoch != t.epoch {
		err = &engine.EpochChangedError{Epoch: now.Epoch, Head: now.Head}
	}
	return now, err
}

// readBack is a page of the log. What retention took before the tail came by is listed as damaged.
func (t *Tail) readBack(ctx context.Context, from uint64) (engine.Page, error) {
	page, err := t.r.log.ReadBack(ctx, from-1)
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		page = engine.Page{Scanned: gone.Oldest - 1, Damaged: []engine.Range{{From: from, To: gone.Oldest - 1}}}
		err = nil
	}
	if err != nil {
		return engine.Page{}, err
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if _, err := t.nowLocked(); err != nil { // the page may be of another epoch
		return engine.Page{}, err
	}
	t.next = page.Scanned + 1
	return page, nil
}
