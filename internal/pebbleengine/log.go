package pebbleengine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
)

const (
	maxRoundEvents = 4096    // events of one commit, unless a single Append has more
	maxRoundBytes  = 8 << 20 // bytes of one commit, likewise
	maxRing        = 8 << 20 // bytes of recent events kept for tails
	maxEpochs      = 4096    // epochs remembered; older positions are refused
)

// epoch is a stretch of the log that begins at offset first.
type epoch struct {
	id    string
	first uint64
}

// log is the log of one namespace.
type log struct {
	// Fixed after open.
	e       *Engine
	name    string
	id      uint32
	cfg     engine.Config
	st      *store // nil: nothing is kept
	queue   chan *request
	stopped chan struct{} // closed when the committer has ended

	// Owned by the committer while it holds st.mu for reading, by load while st.mu is held for writing.
	next     uint64
	lastTime int64
	cum      uint64 // bytes of all values ever written
	ids      *dedup
	trim     trim

	mu     sync.Mutex
	taken  *sync.Cond // a tail has moved or closed; for logs without history
	epochs []epoch
	head   uint64
	oldest uint64
	ring   []recent // consecutive commits, the newest last; empty without tails
	bytes  int      // of ring
	tails  map[*tail]struct{}
	moved  chan struct{} // closed and replaced when head or epochs change
}

// recent is the events of one commit.
type recent struct {
	events []engine.Event
	bytes  int
}

var _ engine.Log = (*log)(nil)

func newLog(e *Engine, name string, cfg engine.Config) *log {
	l := &log{
		e: e, name: name, cfg: cfg,
		queue: make(chan *request, 256), stopped: make(chan struct{}),
		next: 1, oldest: 1, ids: newDedup(cfg), tails: map[*tail]struct{}{}, moved: make(chan struct{}),
	}
	l.taken = sync.NewCond(&l.mu)
	return l
}

// open finds or creates the namespace in the store and loads it. The caller holds st.mu.
func (l *log) open() error {
	b := l.st.db.NewBatch()
	defer b.Close()
	id, err := l.e.number(l.st.db, b, l.name)
	if err != nil {
		return err
	}
	if !b.Empty() {
		if err := l.st.apply(b, !l.st.memory); err != nil {
			return err
		}
	}
	l.id = id
	return l.load()
}

// load reads the log's state from the store and begins a new epoch. The caller holds st.mu, and no committer is running.
func (l *log) load() error {
	db := l.st.db
	last, lastValue, err := l.newest(db)
	if err != nil {
		return err
	}
	t, err := l.loadTrim(db, last)
	if err != nil {
		return err
	}
	ids := newDedup(l.cfg)
	if err := ids.load(db, l.id, last, l.e.o.Now().UnixMilli()); err != nil {
		return err
	}
	epochs, err := l.loadEpochs(db)
	if err != nil {
		return err
	}
	epochs = append(epochs, epoch{newEpoch(), last + 1})
	if len(epochs) > maxEpochs {
		epochs = epochs[len(epochs)-maxEpochs:]
	}
	if err := l.saveEpochs(epochs); err != nil {
		return err
	}
	l.next, l.lastTime, l.cum, l.ids, l.trim = last+1, lastValue.time, lastValue.cum, ids, t

	l.mu.Lock()
	l.epochs, l.head, l.oldest = epochs, last, t.oldest
	l.ring, l.bytes = nil, 0
	l.announceLocked()
	l.mu.Unlock()
	return l.retain(l.e.o.Now())
}

// newest reads the last event of all. Deletion always leaves it, so that offsets go on rising.
func (l *log) newest(db *pebble.DB) (uint64, value, error) {
	p := prefix(kindLog, l.id)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
	if err != nil {
		return 0, value{}, err
	}
	defer it.Close()
	if !it.Last() {
		return 0, value{}, it.Error()
	}
	raw, err := it.ValueAndErr()
	if err != nil {
		return 0, value{}, err
	}
	offset := keyOffset(it.Key())
	v, err := getValue(raw)
	if err != nil {
		return 0, value{}, fmt.Errorf("newest event of %q (offset %d): %w", l.name, offset, err)
	}
	return offset, v, nil
}

func (l *log) loadEpochs(db *pebble.DB) ([]epoch, error) {
	v, closer, err := db.Get(metaKey('e', l.id))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	var list []epoch
	for ; len(v) >= 16; v = v[16:] {
		list = append(list, epoch{fmt.Sprintf("%016x", v[:8]), binary.BigEndian.Uint64(v[8:])})
	}
	return list, nil
}

func (l *log) saveEpochs(list []epoch) error {
	var v []byte
	for _, e := range list {
		var id uint64
		if _, err := fmt.Sscanf(e.id, "%x", &id); err != nil {
			return err
		}
		v = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(v, id), e.first)
	}
	b := l.st.db.NewBatch()
	defer b.Close()
	if err := b.Set(metaKey('e', l.id), v, nil); err != nil {
		return err
	}
	return l.st.apply(b, !l.st.memory)
}

// Namespace implements engine.Log.
func (l *log) Namespace() string { return l.name }

// State implements engine.Log.
func (l *log) State() engine.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return engine.State{
		Epoch:      l.epochs[len(l.epochs)-1].id,
		Oldest:     l.oldest,
		Head:       l.head,
		Durability: l.cfg.History.Durability(),
		History:    l.st != nil,
	}
}

// Check implements engine.Log.
func (l *log) Check(p engine.Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.epochs) - 1
	changed := &engine.EpochChangedError{Epoch: l.epochs[last].id, Head: l.head}
	if l.st == nil {
		changed.Head = 0
		if (p.Epoch != "" && p.Epoch != l.epochs[last].id) || p.Offset != 0 {
			return changed
		}
		return nil
	}
	end := l.head
	if p.Epoch != "" {
		i := last
		for i >= 0 && l.epochs[i].id != p.Epoch {
			i--
		}
		switch {
		case i < 0:
			return changed
		case i < last:
			end = l.epochs[i+1].first - 1
		}
	}
	switch {
	case p.Offset > end:
		return changed
	case p.Offset+1 < l.oldest:
		return &engine.PositionGoneError{Oldest: l.oldest, Newest: l.head}
	}
	return nil
}

// Append implements engine.Log.
func (l *log) Append(ctx context.Context, entries []engine.Entry, mode engine.AppendMode) ([]engine.Result, error) {
	r := &request{entries: entries, mode: mode, done: make(chan struct{})}
	select {
	case l.queue <- r:
	case <-l.stopped:
		return nil, engine.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-r.done:
	case <-l.stopped:
		select {
		case <-r.done:
		default:
			return nil, engine.ErrClosed
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return r.results, r.err
}

// run is the committer.
func (l *log) run() {
	defer close(l.stopped)
	tick := time.NewTicker(l.tickEvery())
	defer tick.Stop()
	for {
		select {
		case <-l.e.ctx.Done():
			return
		case <-tick.C:
			l.idle()
		case r := <-l.queue:
			l.commit(l.gather(r))
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

// announceLocked wakes whoever waits for head or epochs.
func (l *log) announceLocked() {
	close(l.moved)
	l.moved = make(chan struct{})
	l.taken.Broadcast()
}

func (l *log) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.announceLocked()
}
