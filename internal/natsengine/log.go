package natsengine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/ring"
)

// log is an engine.Log: what this node knows of a stream. It is over when the stream is deleted, by whomever: the namespace's next
// stream is another log.
type log struct {
	e      *Engine
	name   string
	stream string // has this name for good
	kept   bool   // it has a stream
	cfg    atomic.Pointer[engine.Config]
	ctx    context.Context // of everything in the background, until the log is deleted
	stop   context.CancelFunc
	ids    *ids // of a log without history
	shelf  shelf

	// gate is held for reading by appends and by whoever reads the stream: only a deletion closes it.
	gate sync.RWMutex

	mu     sync.Mutex
	lost   error // why the log cannot be used any more: it was deleted
	epoch  string
	bytes  uint64 // of retained events, when the stream was last looked at
	head   uint64
	time   int64  // of the event at head, or of one before it
	oldest uint64 // may be above head+1: then the node is yet to see what is gone already
	limit  uint64 // events the stream keeps; 0: any number
	recent *ring.Recent
	recall recall              // of the ring
	moved  chan struct{}       // closed and replaced when head or epoch change
	sent   map[string]*sending // this node's events on their way, by name
	short  time.Time           // since when the stream seems to end below head
	hears  chan struct{}       // of a log without history: closed when what passes may be missed; nil until that is over
}

var _ engine.Log = (*log)(nil)

// openLog opens a namespace's log, making its stream if it is new, and begins to follow it.
func (e *Engine) openLog(name string, cfg engine.Config) (*log, error) {
	l := &log{
		e: e, name: name, kept: cfg.History != engine.HistoryNone, oldest: 1,
		moved: make(chan struct{}), sent: map[string]*sending{},
	}
	l.recent = ring.New(&l.mu, l, e.ctx.Done())
	l.cfg.Store(&cfg)
	l.ctx, l.stop = context.WithCancel(e.ctx)
	begin := l.beginKept
	if !l.kept {
		l.ids = newIDs(cfg)
		begin = l.open
	}
	if err := begin(); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

// beginKept finds or makes the stream.
func (l *log) beginKept() error {
	i, err := l.e.stream(l.e.killed, l.name, *l.cfg.Load())
	if err != nil {
		return err
	}
	l.stream = i.Config.Name
	l.begin(i)
	l.e.logs.Add(1)
	l.e.group.Go(l.follow)
	l.e.group.Go(l.watch)
	return nil
}

// begin sets what is known of the log from its stream.
func (l *log) begin(i *streamInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return
	}
	l.epoch, l.head, l.oldest, l.time = i.Config.Metadata[metaEpoch], i.State.Last, i.State.oldest(), 0
	l.limit = uint64(max(i.Config.MaxMsgs, 0))
	l.recent.Clear()
	l.recall, l.short = recall{}, time.Time{}
	l.shelf.clear()
	l.announceLocked()
}

// Namespace implements engine.Log.
func (l *log) Namespace() string { return l.name }

// State implements engine.Log.
func (l *log) State() engine.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stateLocked()
}

func (l *log) stateLocked() engine.State {
	return engine.State{
		Epoch: l.epoch, Oldest: min(l.oldest, l.head+1), Head: l.head, Durability: l.e.o.durability(l.cfg.Load().History), History: l.kept,
	}
}

// announceLocked wakes whoever waits for head or epoch.
func (l *log) announceLocked() {
	close(l.moved)
	l.moved = make(chan struct{})
}

// How long a position above head is waited for before the stream's leader is asked. A node that is behind catches up in much less, and thousands
// of sessions that come from a node that died must not ask all at once. With replicas the leader alone cannot tell: another replica may have
// stored, and shown, what the leader stores a moment later.
const (
	aheadWait         = 200 * time.Millisecond
	aheadWaitReplicas = 3 * time.Second
)

// Check implements engine.Log. A position above head may come from a node that is ahead of this one.
func (l *log) Check(p engine.Position) error {
	err := l.check(p)
	var changed *engine.EpochChangedError
	if s := l.State(); !l.kept || !errors.As(err, &changed) || p.Epoch != "" && p.Epoch != s.Epoch {
		return err
	}
	ctx, cancel := context.WithTimeout(l.e.ctx, l.e.aheadWait+apiWait)
	defer cancel()
	waiting, stop := context.WithTimeout(ctx, l.e.aheadWait)
	defer stop()
	if l.await(waiting, p.Offset) == nil {
		return l.check(p)
	}
	i, err := l.e.info(ctx, l.stream, nil)
	switch {
	case err != nil:
	case i.Config.Metadata[metaEpoch] == l.State().Epoch && i.State.Last >= p.Offset:
		err = l.await(ctx, p.Offset)
	}
	switch {
	case err == nil:
		return l.check(p)
	case l.e.ctx.Err() != nil:
		return engine.ErrClosed
	case l.readable() != nil:
		return engine.ErrDeleted
	}
	return fmt.Errorf("%w: it is not known whether there is an offset %d: %s", engine.ErrUnavailable, p.Offset, oneLine(err))
}

func (l *log) check(p engine.Position) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	changed := &engine.EpochChangedError{Epoch: l.epoch, Head: l.head}
	if !l.kept { // offsets mean nothing outside the process
		changed.Head = 0
		if p.Offset != 0 || p.Epoch != "" && p.Epoch != changed.Epoch {
			return changed
		}
		return nil
	}
	switch s := l.stateLocked(); {
	case p.Epoch != "" && p.Epoch != l.epoch, p.Offset > l.head:
		return changed
	case p.Offset+1 < s.Oldest:
		return &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	return nil
}

// await waits until head is at an offset or above.
func (l *log) await(ctx context.Context, offset uint64) error {
	for {
		l.mu.Lock()
		there, moved, lost := l.head >= offset, l.moved, l.lost
		l.mu.Unlock()
		switch {
		case there:
			return nil
		case lost != nil:
			return lost
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.e.killed.Done():
			return engine.ErrClosed
		}
	}
}

// learn takes in what the stream's leader says.
func (l *log) learn(i *streamInfo) {
	// A leader may be new and not know all yet; an end that stays lower than head is a log that lost events.
	const shortFor = 10 * time.Second
	if epoch := i.Config.Metadata[metaEpoch]; epoch != l.State().Epoch {
		if epoch != "" {
			l.e.o.Logger.Warn("the stream has a new epoch", "namespace", l.name, "stream", l.stream, "epoch", epoch)
			l.begin(i)
		}
		return
	}
	l.mu.Lock()
	if l.lost != nil {
		l.mu.Unlock()
		return
	}
	l.bytes = i.State.Bytes
	l.limit = uint64(max(i.Config.MaxMsgs, 0))
	l.forgetLocked(i.State.oldest())
	lost := false
	switch {
	case i.State.Last >= l.head:
		l.short = time.Time{}
	case l.short.IsZero():
		l.short = time.Now()
	default:
		lost = time.Since(l.short) > shortFor
	}
	l.mu.Unlock()
	if lost {
		l.renew(i)
	}
}

// forgetLocked takes in that what lies below an offset is gone. If all that is ahead of head is gone, head moves there.
func (l *log) forgetLocked(oldest uint64) {
	l.oldest = max(l.oldest, oldest)
	if l.oldest > l.head+1 {
		l.head = l.oldest - 1
		l.announceLocked()
	}
}

// renew gives a stream that has lost events a new epoch, since their offsets will be used again.
func (l *log) renew(i *streamInfo) {
	c := i.Config
	c.Metadata[metaEpoch] = newEpoch()
	ctx, cancel := context.WithTimeout(l.e.ctx, setupWait)
	defer cancel()
	l.e.o.Logger.Error("the stream has lost events: it gets a new epoch", "namespace", l.name, "stream", l.stream,
		"newest", i.State.Last, "newest before", l.State().Head)
	i, err := l.e.update(ctx, c)
	if err != nil {
		l.e.o.Logger.Error("cannot give the stream a new epoch", "namespace", l.name, "error", oneLine(err))
		return
	}
	l.begin(i)
}

// watch looks at the stream now and then: retention by age and by bytes, and what other nodes trim, show only there.
func (l *log) watch() {
	const (
		every = time.Second
		quiet = 5 // times as long where nothing is published and nothing grows old
	)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := uint64(0)     // the newest offset there was, when the stream was last looked at
	behind := time.Time{} // since when the consumer brings nothing though there is something
	for n, head := 1, uint64(0); ; n++ {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
		l.shelf.second()
		s := l.State()
		if s.Head == head && l.cfg.Load().MaxAge == 0 && n%quiet != 0 && !l.isSending() && l.e.Health() == nil {
			continue
		}
		switch {
		case s.Head != head || head >= last:
			behind = time.Time{}
		case behind.IsZero():
			behind = time.Now()
		case time.Since(behind) > badFor:
			// The connection's server may be cut off, or that of the consumer, which is made anew when it falls silent; the connection
			// need not have been without answers.
			l.e.o.Logger.Warn("nothing comes from the stream, and there is something: the connection goes to another server",
				"namespace", l.name, "server", l.e.feed.nc.ConnectedServerName(), "head", head, "newest", last)
			l.e.feed.move()
			behind = time.Now()
		}
		head = s.Head
		i, err := l.e.info(l.ctx, l.stream, nil)
		if l.ctx.Err() != nil {
			return
		}
		if isCode(err, codeStreamNotFound) && l.endIfGone(l.ctx) {
			return
		}
		l.e.setTrouble(l.name, err)
		if err == nil {
			last = i.State.Last
			l.learn(i)
		}
	}
}

// isSending reports whether appends of this node are on their way.
func (l *log) isSending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent) > 0
}

// setTrouble remembers for Health whether JetStream answers for a stream.
func (e *Engine) setTrouble(namespace string, err error) {
	if err != nil {
		err = fmt.Errorf("%w: namespace %s: %s", engine.ErrUnavailable, namespace, oneLine(err))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.troubles, namespace)
	} else {
		e.troubles[namespace] = err
	}
}

// refresh asks the leader now.
func (l *log) refresh(ctx context.Context) (*streamInfo, error) {
	i, err := l.e.info(ctx, l.stream, nil)
	if err != nil {
		return nil, l.readError(ctx, err)
	}
	l.learn(i)
	return i, nil
}

// readError says what a failed read means to the caller.
func (l *log) readError(ctx context.Context, err error) error {
	switch {
	case l.e.ctx.Err() != nil:
		return engine.ErrClosed
	case l.readable() != nil, isCode(err, codeStreamNotFound) && l.endIfGone(ctx):
		return engine.ErrDeleted
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return apiError("cannot read stream "+l.stream, err)
	}
}

// view says whether a read may begin, and the log's state.
func (l *log) view(ctx context.Context) (engine.State, error) {
	l.e.mu.Lock()
	closed := l.e.closed
	l.e.mu.Unlock()
	if closed {
		return engine.State{}, engine.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return engine.State{}, err
	}
	return l.State(), l.readable()
}

// gone is the error for a read that begins below the oldest event.
func gone(s engine.State) error {
	return &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
}
