package pebbleengine

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// request is one Append on its way through the committer.
type request struct {
	entries []engine.Entry
	mode    engine.AppendMode

	results []engine.Result
	err     error
	done    chan struct{} // closed when results or err are set
}

func (r *request) size() int {
	n := 0
	for i := range r.entries {
		n += len(r.entries[i].Body)
	}
	return n
}

// largeEvent is the size from which an event is stored by itself, so that whoever keeps it does not keep its neighbours.
const largeEvent = 4 << 10

// round is one commit in the making. Nothing of it touches the log before it is committed.
type round struct {
	l     *log
	db    *pebble.DB
	b     *pebble.Batch // nil: nothing is kept
	now   int64
	first uint64 // offset of the first event

	next   uint64
	total  uint64
	marks  []mark // by event
	newest map[topic.Name]uint64
	fresh  map[idHash]engine.Result
	ids    []remembered

	follow bool // somebody may want events from the ring
	events []engine.Event
	buf    []byte // holds the small events; it never grows
}

// commit makes one round of the requests, and answers them.
func (l *log) commit(requests []*request) {
	err := l.commitRound(requests)
	for _, r := range requests {
		if r.err == nil {
			r.err = err
		}
		if r.err != nil {
			r.results = nil
		}
		close(r.done)
	}
}

func (l *log) commitRound(requests []*request) error {
	size, count := 0, 0
	for _, req := range requests {
		size += req.size()
		count += len(req.entries)
	}
	r := l.newRound(size, count)
	if l.st != nil {
		if !l.st.memory {
			if err := l.e.space.take(uint64(size)); err != nil {
				return err
			}
		}
		db, err := l.st.acquire()
		if err != nil {
			return err
		}
		defer l.st.release()
		if err := l.st.failure(); err != nil {
			return err
		}
		r.db, r.b = db, db.NewBatchWithSize(size+count*128)
		defer r.b.Close()
	}
	r.begin()
	for _, req := range requests {
		if req.err = r.lookUp(req.entries); req.err != nil {
			continue // the others go on
		}
		if err := r.add(req); err != nil {
			return err
		}
	}
	return r.finish()
}

func (l *log) newRound(size, count int) *round {
	r := &round{l: l, newest: map[topic.Name]uint64{}, fresh: map[idHash]engine.Result{}, marks: make([]mark, 0, count)}
	l.mu.Lock()
	r.follow = l.st == nil || l.recent.Followed()
	l.mu.Unlock()
	if r.follow {
		r.events = make([]engine.Event, 0, count)
		r.buf = make([]byte, 0, size+count*wire.MaxTrailer)
	}
	return r
}

// begin takes over where the log stands. The store has been acquired: it is not being read anew.
func (r *round) begin() {
	l := r.l
	r.now = max(l.e.o.Now().UnixMilli(), l.lastTime)
	r.first, r.next, r.total = l.next, l.next, l.total
}

// add adds a request's entries. After an error the round is not to be used.
func (r *round) add(req *request) error {
	req.results = make([]engine.Result, len(req.entries))
	skip := false
	for i := range req.entries {
		res := &req.results[i]
		if skip {
			res.Err = engine.ErrSkipped
			continue
		}
		if err := r.addEntry(&req.entries[i], res); err != nil {
			return err
		}
		skip = res.Err != nil && req.mode == engine.AppendOrdered
	}
	return nil
}

// lookUp reads what conditional entries compare with: the offset of their topic's newest retained event.
func (r *round) lookUp(entries []engine.Entry) error {
	for i := range entries {
		n := entries[i].Topic
		if _, known := r.newest[n]; known || !entries[i].Conditional || r.b == nil {
			continue
		}
		offset, err := getOffset(r.db, topicKey(r.l.id, n.String()))
		if err != nil {
			return readError(err)
		}
		if offset < r.l.trim.oldest {
			offset = 0
		}
		r.newest[n] = offset
	}
	return nil
}

// addEntry decides on one entry. The first publish of an id answers for all later ones, whatever they expect.
func (r *round) addEntry(en *engine.Entry, res *engine.Result) error {
	var id idHash
	if en.Dedup {
		id = hashID(en.Topic, en.ID)
		if first, ok := r.known(id); ok {
			*res = first
			return nil
		}
	}
	if en.Conditional {
		if res.Err = r.check(en); res.Err != nil {
			return nil
		}
	}
	offset := r.next
	res.Timestamp = r.now
	if r.b != nil {
		res.Offset = offset
		if err := r.store(offset, en); err != nil {
			return err
		}
	}
	r.next++
	if r.follow {
		r.events = append(r.events, engine.Event{Offset: offset, Topic: en.Topic, Timestamp: r.now, Wire: r.wire(en.Body, res.Offset)})
	}
	if en.Dedup {
		r.fresh[id] = engine.Result{Offset: res.Offset, Timestamp: r.now, Duplicate: true}
		r.ids = append(r.ids, remembered{id, offset})
	}
	return nil
}

// check compares a conditional entry with its topic's newest event, this round's included.
func (r *round) check(en *engine.Entry) error {
	if r.b == nil {
		return engine.ErrNoHistory
	}
	if newest := r.newest[en.Topic]; newest != en.Expected {
		return &engine.ConflictError{Current: newest}
	}
	return nil
}

func (r *round) known(id idHash) (engine.Result, bool) {
	if res, ok := r.fresh[id]; ok {
		return res, true
	}
	f, ok := r.l.ids.find(id, r.now)
	return engine.Result{Offset: f.offset, Timestamp: f.time, Duplicate: true}, ok
}

// wire completes a body. The body itself may be in use elsewhere, so it is copied.
func (r *round) wire(body []byte, offset uint64) []byte {
	if len(body) >= largeEvent {
		b := append(make([]byte, 0, len(body)+wire.MaxTrailer), body...)
		return wire.AppendOffset(wire.AppendTimestamp(b, r.now), offset)
	}
	start := len(r.buf)
	r.buf = wire.AppendOffset(wire.AppendTimestamp(append(r.buf, body...), r.now), offset)
	return r.buf[start:len(r.buf):len(r.buf)]
}

// store adds the event and its index key to the batch.
func (r *round) store(offset uint64, en *engine.Entry) error {
	size := valueHeader + len(en.Body)
	r.marks = append(r.marks, mark{before: r.total, time: r.now})
	r.total += uint64(size)
	d := r.b.SetDeferred(logKeySize, size)
	appendOffsetKey(d.Key[:0], kindLog, r.l.id, offset)
	putValue(d.Value, value{total: r.total, time: r.now, body: en.Body})
	if err := d.Finish(); err != nil {
		return err
	}
	d = r.b.SetDeferred(indexKeySize(en.Topic), 0)
	appendIndexKey(d.Key[:0], r.l.id, en.Topic, offset)
	r.newest[en.Topic] = offset
	return d.Finish()
}

// finish commits the round at the level the namespace promises, and only then lets the log have it.
func (r *round) finish() error {
	l := r.l
	if r.next == r.first { // duplicates and conflicts only
		return nil
	}
	t := l.trim
	if r.b != nil {
		if err := r.write(&t); err != nil {
			return err
		}
	}
	l.next, l.total, l.lastTime, l.trim = r.next, r.total, r.now, t
	l.ids.remember(r.now, r.ids, r.b != nil)
	l.deliver(r)
	return nil
}

// write adds what goes with the events and applies the batch.
func (r *round) write(t *trim) error {
	l := r.l
	for n, offset := range r.newest {
		if offset < r.first {
			continue // only looked up
		}
		if err := r.b.Set(topicKey(l.id, n.String()), binary.BigEndian.AppendUint64(nil, offset), nil); err != nil {
			return err
		}
	}
	if err := l.ids.save(r.b, l.id, r.now, r.ids); err != nil {
		return err
	}
	scope := marks{l: l, db: r.db, head: r.next - 1, total: r.total, first: r.first, pending: r.marks}
	if err := t.advance(*l.limits.Load(), scope, l.e.o.Now()); err != nil {
		return readError(err)
	}
	if t.oldest != l.trim.oldest {
		if err := r.b.Set(metaKey(metaTrim, l.id), t.encode(), nil); err != nil {
			return err
		}
	}
	return l.st.apply(r.b, levelOf(l.history))
}

// deliver moves the head and hands the events to the tails.
func (l *log) deliver(r *round) {
	if l.st == nil {
		l.recent.AwaitRoom(l.e.ctx.Done())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = r.next - 1
	l.oldest = l.trim.oldest
	if l.st == nil {
		l.oldest = r.next // nothing is retained
	}
	if l.recent.Followed() {
		l.recent.Add(r.events, 0)
	}
	l.DropLocked()
	l.announceLocked()
}
