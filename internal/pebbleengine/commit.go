package pebbleengine

import (
	"encoding/binary"
	"fmt"
	"time"

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

// round is one commit in the making.
type round struct {
	l      *log
	b      *pebble.Batch // nil: nothing is kept
	now    int64
	events []engine.Event
	bytes  int
	newest map[topic.Name]uint64
	ids    []remembered
}

// commit makes one round of the requests, and answers them.
func (l *log) commit(requests []*request) {
	events, err := l.write(requests)
	if err == nil {
		l.publish(events)
	}
	for _, r := range requests {
		if r.err = err; err != nil {
			r.results = nil
		}
		close(r.done)
	}
}

func (l *log) write(requests []*request) ([]engine.Event, error) {
	r := &round{l: l, now: max(l.e.o.Now().UnixMilli(), l.lastTime), newest: map[topic.Name]uint64{}}
	size := 0
	for _, req := range requests {
		size += req.size()
	}
	if l.st != nil {
		l.st.mu.RLock()
		defer l.st.mu.RUnlock()
		if err := l.st.failure(); err != nil {
			return nil, fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
		}
		if !l.st.memory {
			if err := l.e.space.take(uint64(size)); err != nil {
				return nil, err
			}
		}
		r.b = l.st.db.NewBatchWithSize(size + size/2)
		defer r.b.Close()
	}
	for _, req := range requests {
		if err := r.add(req); err != nil {
			return nil, l.broken(err)
		}
	}
	if err := r.finish(); err != nil {
		return nil, l.broken(err)
	}
	return r.events, nil
}

// broken latches the store: the round was half made, so the committer's state no longer is the store's.
func (l *log) broken(err error) error {
	l.st.fail(err)
	return fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
}

func (r *round) add(req *request) error {
	req.results = make([]engine.Result, len(req.entries))
	skip := false
	for i := range req.entries {
		if skip {
			req.results[i].Err = engine.ErrSkipped
			continue
		}
		res, err := r.addEntry(&req.entries[i])
		if err != nil {
			return err
		}
		req.results[i] = res
		skip = res.Err != nil && req.mode == engine.AppendOrdered
	}
	return nil
}

func (r *round) addEntry(en *engine.Entry) (engine.Result, error) {
	l := r.l
	var id idHash
	if en.Dedup {
		id = hashID(en.Topic, en.ID)
		if first, ok := l.ids.find(id, r.now); ok {
			return engine.Result{Offset: first.offset, Timestamp: first.time, Duplicate: true}, nil
		}
	}
	if en.Conditional {
		newest, err := r.newestOf(en.Topic)
		switch {
		case err == engine.ErrNoHistory:
			return engine.Result{Err: err}, nil
		case err != nil:
			return engine.Result{}, err
		case newest != en.Expected:
			return engine.Result{Err: &engine.ConflictError{Current: newest}}, nil
		}
	}
	offset := l.next
	l.next++
	res := engine.Result{Timestamp: r.now}
	if r.b != nil {
		res.Offset = offset
		if err := r.store(offset, en); err != nil {
			return engine.Result{}, err
		}
	}
	wired := wire.AppendOffset(wire.AppendTimestamp(en.Body, r.now), res.Offset)
	r.events = append(r.events, engine.Event{Offset: offset, Topic: en.Topic, Timestamp: r.now, Wire: wired})
	r.bytes += len(wired)
	if en.Dedup {
		l.ids.add(id, first{res.Offset, r.now})
		r.ids = append(r.ids, remembered{id, offset})
	}
	return res, nil
}

// newestOf is the offset of the topic's newest retained event, this round's included; 0 if there is none.
func (r *round) newestOf(n topic.Name) (uint64, error) {
	if r.b == nil {
		return 0, engine.ErrNoHistory
	}
	if offset, ok := r.newest[n]; ok {
		return offset, nil
	}
	offset, err := getOffset(r.l.st.db, topicKey(r.l.id, n.String()))
	if err != nil || offset < r.l.trim.oldest {
		return 0, err
	}
	return offset, nil
}

// store adds the event and its index key to the batch.
func (r *round) store(offset uint64, en *engine.Entry) error {
	l := r.l
	size := valueHeader + len(en.Body)
	l.cum += uint64(size)
	d := r.b.SetDeferred(1+4+8, size)
	copy(d.Key, offsetKey(kindLog, l.id, offset))
	putValue(d.Value, value{cum: l.cum, time: r.now, body: en.Body})
	if err := d.Finish(); err != nil {
		return err
	}
	r.newest[en.Topic] = offset
	return r.b.Set(indexKey(l.id, en.Topic, offset), nil, nil)
}

// finish commits the round at the level the namespace promises.
func (r *round) finish() error {
	l := r.l
	if len(r.events) == 0 {
		return nil
	}
	if r.b != nil {
		for n, offset := range r.newest {
			if err := r.b.Set(topicKey(l.id, n.String()), binary.BigEndian.AppendUint64(nil, offset), nil); err != nil {
				return err
			}
		}
		if err := l.ids.save(r.b, l.id, r.now, r.ids); err != nil {
			return err
		}
		if err := l.st.apply(r.b, l.cfg.History == engine.HistoryDisk); err != nil {
			return err
		}
	}
	l.lastTime = r.now
	return nil
}

// publish moves the head and hands the events to the tails, then trims.
func (l *log) publish(events []engine.Event) {
	if len(events) == 0 {
		return
	}
	bytes := 0
	for i := range events {
		bytes += len(events[i].Wire)
	}
	l.mu.Lock()
	if l.st == nil {
		l.awaitTailsLocked()
		l.oldest = l.next // nothing is retained
	}
	l.head = events[len(events)-1].Offset
	if len(l.tails) > 0 {
		l.ring = append(l.ring, recent{events, bytes})
		l.bytes += bytes
	}
	l.dropLocked()
	l.announceLocked()
	l.mu.Unlock()
	if l.st != nil {
		l.idle()
	}
}

// idle applies retention.
func (l *log) idle() {
	if l.st == nil {
		return
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	if l.st.failure() != nil {
		return
	}
	if err := l.retain(l.e.o.Now()); err != nil {
		l.st.fail(fmt.Errorf("retention of %q: %w", l.name, err))
	}
}

func (l *log) tickEvery() time.Duration {
	if l.cfg.MaxAge == 0 {
		return time.Hour
	}
	return min(max(l.cfg.MaxAge/10, 100*time.Millisecond), time.Minute)
}
