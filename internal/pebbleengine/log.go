package pebbleengine

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/ring"
)

const (
	maxRoundEvents = 4096    // events of one commit, unless a single Append has more
	maxRoundBytes  = 8 << 20 // bytes of one commit, likewise
)

// log is the log of one namespace.
type log struct {
	// Fixed after openLog.
	e         *Engine
	name      string
	id        uint32
	history   engine.History
	st        *store // nil: nothing is kept
	queue     chan *request
	trims     chan *trimming
	deletions chan *deletion
	stopped   chan struct{} // closed when the committer has ended

	// gate is held for reading by whoever reads the store, through I/O, and before st is acquired: only a deletion closes it.
	gate sync.RWMutex

	// Owned by the committer, which has acquired st; by load while nobody has.
	next     uint64 // offset of the next event
	lastTime int64  // timestamp of the last event
	total    uint64 // bytes of all values ever written
	ids      *dedup
	trim     trim

	limits     atomic.Pointer[engine.Config] // its history is not looked at
	configured chan struct{}                 // receives when limits have changed

	mu     sync.Mutex
	epochs []epoch
	head   uint64
	oldest uint64
	recent *ring.Recent
	moved  chan struct{} // closed and replaced when head, epochs or lost change
	// lost is why nothing can be read any more: ErrDeleted, or that a deletion failed, until the log is loaded anew.
	lost error
}

var _ engine.Log = (*log)(nil)

func newLog(e *Engine, name string, cfg engine.Config) *log {
	l := &log{
		e: e, name: name, history: cfg.History, configured: make(chan struct{}, 1),
		queue: make(chan *request, 256), trims: make(chan *trimming), deletions: make(chan *deletion), stopped: make(chan struct{}),
		next: 1, oldest: 1, ids: newDedup(cfg), moved: make(chan struct{}),
	}
	l.recent = ring.New(&l.mu, l, e.ctx.Done())
	l.limits.Store(&cfg)
	return l
}

// limit puts new limits in force, soon.
func (l *log) limit(cfg engine.Config) {
	l.limits.Store(&cfg)
	select {
	case l.configured <- struct{}{}:
	default:
	}
}

// Namespace implements engine.Log.
func (l *log) Namespace() string { return l.name }

// State implements engine.Log.
func (l *log) State() engine.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return engine.State{
		Epoch:      l.epochLocked(),
		Oldest:     l.oldest,
		Head:       l.head,
		Durability: l.history.Durability(),
		History:    l.st != nil,
	}
}

func (l *log) epochLocked() string { return l.epochs[len(l.epochs)-1].id }

// Check implements engine.Log.
func (l *log) Check(p engine.Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	changed := &engine.EpochChangedError{Epoch: l.epochLocked(), Head: l.head}
	if l.st == nil { // offsets mean nothing outside the process
		changed.Head = 0
		if p.Offset != 0 || p.Epoch != "" && p.Epoch != changed.Epoch {
			return changed
		}
		return nil
	}
	end, ok := l.endOfLocked(p.Epoch)
	switch {
	case !ok || p.Offset > end:
		return changed
	case p.Offset+1 < l.oldest:
		return &engine.PositionGoneError{Oldest: l.oldest, Newest: l.head}
	}
	return nil
}

// endOfLocked is the last offset of an epoch; the empty one is the current one.
func (l *log) endOfLocked(id string) (end uint64, ok bool) {
	last := len(l.epochs) - 1
	if id == "" || id == l.epochs[last].id {
		return l.head, true
	}
	for i := last - 1; i >= 0; i-- {
		if l.epochs[i].id == id {
			return l.epochs[i+1].first - 1, true
		}
	}
	return 0, false
}

// Append implements engine.Log.
func (l *log) Append(ctx context.Context, entries []engine.Entry, mode engine.AppendMode) ([]engine.Result, error) {
	if err := l.admit(ctx); err != nil || len(entries) == 0 {
		return nil, err
	}
	var failed <-chan struct{} // never, without a store
	if l.st != nil {
		failed = l.st.failed()
	}
	r := &request{entries: entries, mode: mode, done: make(chan struct{})}
	select {
	case l.queue <- r:
	case <-l.stopped:
		return nil, l.ended()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-r.done:
		return r.results, r.err
	case <-failed:
		return nil, l.failure()
	case <-l.stopped:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-r.done: // the committer's last
		return r.results, r.err
	default:
		return nil, l.ended()
	}
}

// admit refuses what cannot be stored now, before it waits in line.
func (l *log) admit(ctx context.Context) error {
	switch {
	case l.e.ctx.Err() != nil:
		return engine.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(l.readable(), engine.ErrDeleted):
		return engine.ErrDeleted
	case l.st != nil:
		return l.writable()
	}
	return nil
}

// writable is why nothing can be written now. A full disk is the better answer where both are true.
func (l *log) writable() error {
	failure := l.st.failure()
	if failure == nil || l.st.memory {
		return failure
	}
	if err := l.e.space.take(0); err != nil {
		return err
	}
	return failure
}

// failure is what the caller of an append gets whose fate is unknown.
func (l *log) failure() error {
	if err := l.st.failure(); err != nil {
		return err
	}
	return engine.ErrStorageFailed // the store is open again already
}

// run is the committer.
func (l *log) run() {
	defer close(l.stopped)
	tick := time.NewTimer(jitter(l.tickEvery()))
	defer tick.Stop()
	for {
		select {
		case <-l.e.ctx.Done():
			return
		case <-tick.C:
			l.tick()
			tick.Reset(jitter(l.tickEvery()))
		case r := <-l.queue:
			l.commit(l.gather(r))
			l.tidy()
		case <-l.configured:
			l.tick()
			tick.Reset(jitter(l.tickEvery()))
		case t := <-l.trims:
			t.err = l.trimTo(t.upTo)
			close(t.done)
			l.tidy()
		case d := <-l.deletions:
			d.err = l.remove()
			close(d.done)
			if d.err == nil {
				return
			}
		}
	}
}

// gather takes what else waits, up to the size of a round.
func (l *log) gather(first *request) []*request {
	round := []*request{first}
	events, bytes := len(first.entries), first.size()
	for events < maxRoundEvents && bytes < maxRoundBytes {
		select {
		case r := <-l.queue:
			round = append(round, r)
			events += len(r.entries)
			bytes += r.size()
		default:
			return round
		}
	}
	return round
}

// tickEvery is how often retention by age and forgotten ids are looked after while nothing is appended.
func (l *log) tickEvery() time.Duration {
	most := l.limits.Load().MaxAge
	if most == 0 {
		return time.Minute
	}
	return min(max(most/10, 50*time.Millisecond), time.Minute)
}

// jitter spreads timers of many namespaces: d, up to a tenth less.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }

// announceLocked wakes whoever waits for head or epochs.
func (l *log) announceLocked() {
	close(l.moved)
	l.moved = make(chan struct{})
}
