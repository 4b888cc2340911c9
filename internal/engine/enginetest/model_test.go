package enginetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// bug is what a broken variant of the model does wrong. Without one it is a correct engine, made of slices and mutexes, with
// no ambition but to be seen to be correct.
type bug string

// disk is storage: what outlives an engine, and how it fails.
type disk struct {
	bug bug

	mu    sync.Mutex
	logs  map[string]*stored
	after int // writes and syncs until one fails
	times int // failures left
	full  bool
}

// stored is what the disk holds of one log. Trimmed events stay, out of sight.
type stored struct {
	events []record
	synced int // events that survive a power loss
	oldest uint64
	epochs []epoch
}

type record struct {
	entry engine.Entry
	time  int64
}

type epoch struct {
	id    string
	first uint64
}

func modelFactory(b bug) Factory {
	return Factory{Histories: all, Clock: true, Storage: func(TB) Storage {
		return (&disk{bug: b, logs: map[string]*stored{}}).storage()
	}}
}

func (d *disk) storage() Storage {
	return Storage{
		Open: func(o Options) (engine.Engine, error) {
			return &modelEngine{disk: d, o: o, logs: map[string]*modelLog{}, done: make(chan struct{})}, nil
		},
		Crash: d.crash,
		Fail: func(after, times int) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.after, d.times = after, times
		},
		Full: func(full bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.full = full
		},
	}
}

func (d *disk) crash(unsynced int, rng *rand.Rand) Storage {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &disk{bug: d.bug, logs: map[string]*stored{}}
	for name, s := range d.logs {
		n := s.synced
		for n < len(s.events) && rng.IntN(100) < unsynced {
			n++
		}
		c.logs[name] = &stored{slices.Clone(s.events[:n]), n, min(s.oldest, uint64(n)+1), slices.Clone(s.epochs)}
	}
	return c.storage()
}

// fails reports whether this write or sync fails.
func (d *disk) fails() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.times == 0 {
		return false
	}
	if d.after > 0 {
		d.after--
		return false
	}
	d.times--
	return true
}

type modelEngine struct {
	disk *disk
	o    Options
	done chan struct{}

	mu     sync.Mutex
	logs   map[string]*modelLog
	closed bool
}

func (e *modelEngine) Log(name string) (engine.Log, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	cfg, ok := e.o.Namespace(name)
	if _, err := topic.ParseNamespace(name); err != nil || !ok {
		return nil, engine.ErrUnknownNamespace
	}
	if e.closed {
		return nil, engine.ErrClosed
	}
	if l := e.logs[name]; l != nil {
		return l, nil
	}
	l := &modelLog{e: e, bug: e.disk.bug, name: name, cfg: cfg, mu: &e.disk.mu, moved: make(chan struct{}), s: e.disk.open(name, cfg.History)}
	if l.bug == "namespaces share a log" {
		for _, other := range e.logs {
			l.s = other.s
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.openLocked()
	e.logs[name] = l
	return l, nil
}

func (d *disk) open(name string, h engine.History) *stored {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.logs[name]
	if s == nil {
		s = &stored{oldest: 1}
	}
	if h == engine.HistoryDisk || h == engine.HistoryOS || d.bug == "memory outlives a restart" {
		d.logs[name] = s
	}
	return s
}

func (e *modelEngine) Health() error {
	e.disk.mu.Lock()
	defer e.disk.mu.Unlock()
	if e.disk.full {
		return engine.ErrStorageFull
	}
	return nil
}

func (e *modelEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		if e.disk.bug != "closing forgets the tails" {
			close(e.done)
		}
		if e.disk.bug == "a goroutine is left" {
			go time.Sleep(time.Hour)
		}
		for _, l := range e.logs { // an append in flight ends first
			l.commit.Lock()
			//lint:ignore SA2001 it is only waited for
			l.commit.Unlock()
		}
	}
	return nil
}

func (e *modelEngine) isClosed() bool {
	select {
	case <-e.done:
		return e.disk.bug != "a closed engine goes on"
	default:
		return false
	}
}

// modelLog is a log. commit is held through an append; mu, the disk's, guards everything else.
type modelLog struct {
	e    *modelEngine
	bug  bug
	name string
	cfg  engine.Config

	commit sync.Mutex

	mu    *sync.Mutex
	s     *stored
	head  uint64
	ids   map[string]engine.Result
	order []string // ids, the oldest first
	moved chan struct{}
	gone  bool // deleted
}

// openLocked begins a new epoch.
func (l *modelLog) openLocked() {
	s := l.s
	s.synced = len(s.events)
	l.head = uint64(len(s.events))
	id := fmt.Sprintf("%016x", rand.Uint64())
	switch {
	case l.bug == "epoch kept over a restart" && len(s.epochs) > 0:
		id = s.epochs[len(s.epochs)-1].id
	case l.bug == "old epochs forgotten":
		s.epochs = nil
	}
	s.epochs = append(s.epochs, epoch{id, l.head + 1})
	l.ids, l.order = map[string]engine.Result{}, nil
	for i, r := range s.events {
		gone := uint64(i+1) < s.oldest && l.bug == "ids trimmed with their events"
		if r.entry.Dedup && !gone && l.bug != "ids forgotten at a restart" {
			l.remember(&r.entry, engine.Result{Offset: uint64(i + 1), Timestamp: r.time})
		}
	}
	l.moveLocked()
}

func (l *modelLog) moveLocked() {
	close(l.moved)
	l.moved = make(chan struct{})
}

func (l *modelLog) key(e *engine.Entry) string {
	if l.bug == "ids of all topics are one" {
		return e.ID
	}
	return e.Topic.String() + " " + e.ID
}

func (l *modelLog) remember(e *engine.Entry, r engine.Result) {
	key := l.key(e)
	l.order = slices.DeleteFunc(l.order, func(k string) bool { return k == key })
	l.ids[key] = r
	l.order = append(l.order, key)
	if len(l.order) > l.cfg.DedupIDs && l.bug != "ids without bound" {
		delete(l.ids, l.order[0])
		l.order = l.order[1:]
	}
}

func (l *modelLog) Namespace() string { return l.name }

func (l *modelLog) keeps() bool { return l.cfg.History != engine.HistoryNone }

func (l *modelLog) State() engine.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stateLocked()
}

func (l *modelLog) stateLocked() engine.State {
	l.trimLocked()
	oldest := l.s.oldest
	if !l.keeps() {
		oldest = l.head + 1
	}
	return engine.State{
		Epoch: l.s.epochs[len(l.s.epochs)-1].id, Oldest: oldest, Head: l.head,
		Durability: l.cfg.History.Durability(), History: l.keeps(),
	}
}

// trimLocked applies retention.
func (l *modelLog) trimLocked() {
	s := l.s
	bytes := 0
	for i := s.oldest; i <= l.head; i++ {
		bytes += len(s.events[i-1].entry.Body)
	}
	cutoff := l.e.o.Now().Add(-l.cfg.MaxAge).UnixMilli()
	for ; s.oldest <= l.head; s.oldest++ {
		r := s.events[s.oldest-1]
		switch {
		case l.cfg.MaxEvents > 0 && l.head-s.oldest >= l.cfg.MaxEvents && l.bug != "retention by events ignored":
		case l.cfg.MaxBytes > 0 && uint64(bytes) > l.cfg.MaxBytes && l.bug != "retention by bytes ignored":
		case l.cfg.MaxAge > 0 && r.time < cutoff && l.bug != "retention by age ignored":
		default:
			return
		}
		bytes -= len(r.entry.Body)
		if l.bug == "ids trimmed with their events" {
			delete(l.ids, l.key(&r.entry))
		}
	}
}

func (l *modelLog) Trim(_ context.Context, upTo uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.keeps() {
		return 0, engine.ErrNoHistory
	}
	if l.gone {
		return 0, engine.ErrDeleted
	}
	if l.bug == "trimming by hand goes back" {
		l.s.oldest = min(upTo, l.head) + 1
	}
	l.s.oldest = max(l.s.oldest, min(upTo, l.head)+1)
	return l.s.oldest, nil
}

func (l *modelLog) Append(ctx context.Context, entries []engine.Entry, mode engine.AppendMode) ([]engine.Result, error) {
	l.commit.Lock()
	defer l.commit.Unlock()
	if l.e.isClosed() {
		return nil, engine.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := l.deleted(); err != nil {
		return nil, err
	}
	onDisk := l.keeps() && l.cfg.History != engine.HistoryMemory
	if err := l.e.Health(); err != nil && onDisk && l.bug != "a full disk is not noticed" {
		return nil, err
	}
	results := l.write(entries, mode)
	for range 20 { // a sync takes its time
		runtime.Gosched()
	}
	if onDisk && l.e.disk.fails() {
		l.reopen(0)
		return nil, engine.ErrStorageFailed
	}
	if onDisk && l.e.disk.fails() && l.bug != "a failed sync is acknowledged" {
		l.reopen(len(results))
		return nil, engine.ErrStorageFailed
	}
	l.sync()
	return results, nil
}

// write puts entries behind the log, where nobody sees them yet.
func (l *modelLog) write(entries []engine.Entry, mode engine.AppendMode) []engine.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	results := make([]engine.Result, len(entries))
	before := l.s.events
	failed := false
	for i := range entries {
		if failed && mode == engine.AppendOrdered && l.bug != "ordered goes on" {
			results[i].Err = engine.ErrSkipped
			continue
		}
		results[i] = l.addLocked(&entries[i], before)
		failed = failed || results[i].Err != nil
	}
	if l.bug == "visible before commit" {
		l.head = uint64(len(l.s.events))
		l.moveLocked()
	}
	return results
}

func (l *modelLog) addLocked(e *engine.Entry, before []record) engine.Result {
	now := l.e.o.Now().UnixMilli()
	events := l.s.events
	if n := len(events); n > 0 && l.bug != "time is the clock's" {
		now = max(now, events[n-1].time)
	}
	first, found := l.ids[l.key(e)]
	found = found && e.Dedup && (now-first.Timestamp <= l.cfg.DedupWindow.Milliseconds() || l.bug == "the window never ends")
	if l.bug == "ids of one call not compared" && first.Offset > uint64(len(before)) {
		found = false
	}
	if e.Conditional && (!found || l.bug == "a conflict wins over a duplicate") {
		if l.bug == "expectation ignores what is pending" {
			events = before
		}
		if err := l.expectLocked(e, events); err != nil {
			return engine.Result{Err: err}
		}
	}
	if found {
		first.Duplicate = true
		return first
	}
	l.s.events = append(l.s.events, record{*e, now})
	r := engine.Result{Offset: uint64(len(l.s.events)), Timestamp: now}
	if l.bug == "offsets begin at 0" {
		r.Offset--
	}
	if !l.keeps() {
		r.Offset = 0
	}
	if e.Dedup {
		l.remember(e, r)
	}
	return r
}

func (l *modelLog) expectLocked(e *engine.Entry, events []record) error {
	if !l.keeps() {
		return engine.ErrNoHistory
	}
	newest := uint64(0)
	for i := len(events) - 1; i >= 0 && newest == 0; i-- {
		if events[i].entry.Topic == e.Topic && (uint64(i+1) >= l.s.oldest || l.bug == "expectation of trimmed events") {
			newest = uint64(i + 1)
		}
	}
	if newest != e.Expected {
		return &engine.ConflictError{Current: newest}
	}
	return nil
}

// sync makes what was written safe, and visible.
func (l *modelLog) sync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.History == engine.HistoryDisk {
		if l.s.synced = len(l.s.events); l.bug == "ack before commit" && l.s.synced > 0 {
			l.s.synced--
		}
	}
	l.head = uint64(len(l.s.events))
	l.trimLocked()
	l.moveLocked()
}

// reopen begins a new epoch after a failure. Of what was being written, n events turn out to be there.
func (l *modelLog) reopen(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	most := min(uint64(len(l.s.events)), l.head+uint64(n))
	l.s.events = l.s.events[:most]
	if l.bug == "no epoch after a failure" {
		l.head = most
		l.moveLocked()
		return
	}
	l.openLocked()
}

func (l *modelLog) Check(p engine.Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return engine.ErrDeleted
	}
	s := l.stateLocked()
	end, known := l.head, p.Epoch == ""
	for i, e := range l.s.epochs {
		if e.id == p.Epoch {
			end, known = l.head, true
			if i+1 < len(l.s.epochs) && l.bug != "epoch ignored" {
				end = l.s.epochs[i+1].first - 1
			}
		}
	}
	if !l.keeps() {
		end = 0
	}
	switch {
	case (!known || p.Offset > end) && l.bug != "every position is good":
		return &engine.EpochChangedError{Epoch: s.Epoch, Head: s.Head}
	case l.keeps() && p.Offset+1 < s.Oldest:
		return &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	return nil
}

// eventLocked encodes an event.
func (l *modelLog) eventLocked(offset uint64) engine.Event {
	r := l.s.events[offset-1]
	body := wire.AppendTimestamp(slices.Clone(r.entry.Body), r.time)
	if l.keeps() {
		body = wire.AppendOffset(body, offset)
	}
	return engine.Event{Offset: offset, Topic: r.entry.Topic, Timestamp: r.time, Wire: body}
}
