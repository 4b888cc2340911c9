package pebbleengine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
)

// Delete implements engine.Engine.
func (e *Engine) Delete(ctx context.Context, namespace string) error {
	return e.opens.Delete(ctx, namespace, func(l *log, open bool) error {
		recorded := false
		if !open || l.st != e.disk {
			// It may have been kept on disk before. That comes first: if it fails nothing has happened.
			var err error
			if recorded, err = e.disk.eraseRecorded(namespace); err != nil {
				return err
			}
		}
		if recorded {
			e.group.Go(func() { e.reclaim(e.disk) })
		}
		switch {
		case !open && !recorded:
			return engine.ErrUnknownNamespace
		case !open:
			return nil
		}
		if err := l.delete(ctx); err != nil {
			return err
		}
		if l.st != nil {
			e.group.Go(func() { e.reclaim(l.st) })
		}
		return nil
	})
}

// reclaim flushes what was deleted, since only tombstones in tables give space back, and on a quiet server nothing else would. While flushes
// wait already it lets them go first: nobody shall have to wait for this one. What is just being compacted goes with a later compaction.
func (e *Engine) reclaim(s *store) {
	for wait := 10 * time.Millisecond; !s.flushSoon(); wait = min(2*wait, 2*time.Second) {
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(jitter(wait)):
		}
	}
}

// flushSoon begins a flush; false if too many are waiting. A store that has failed, or is closed, flushes when it is opened.
func (s *store) flushSoon() bool {
	db, err := s.acquire()
	if err != nil {
		return true
	}
	defer s.release()
	switch {
	case s.failure() != nil:
		return true
	case db.Metrics().MemTable.Count >= memtables-1:
		return false
	}
	if _, err := db.AsyncFlush(); err != nil {
		s.logger.Warn("flushing the storage", "err", err)
	}
	return true
}

// forget takes a deleted log out of the engine.
func (e *Engine) forget(l *log) {
	e.opens.Forget(l.name, l)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.logs = slices.DeleteFunc(e.logs, func(other *log) bool { return other == l })
}

// deletion is one Delete on its way through the committer.
type deletion struct {
	err  error
	done chan struct{} // closed when err is set
}

// delete has the committer delete the log, behind all appends that came before.
func (l *log) delete(ctx context.Context) error {
	d := &deletion{done: make(chan struct{})}
	select {
	case l.deletions <- d:
	case <-l.stopped:
		return l.ended()
	case <-ctx.Done():
		return ctx.Err()
	}
	<-d.done
	return d.err
}

// remove is the committer's end of delete. Readers are kept out, so that none finds a part of the log: neither between its keys, nor after
// a failure, when it is not known whether they are gone.
func (l *log) remove() error {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.st != nil {
		db, err := l.st.acquire()
		if err != nil {
			return err
		}
		defer l.st.release()
		if err := l.st.failure(); err != nil {
			return err
		}
		if err := l.st.erase(db, l.name, l.id); err != nil {
			l.lose(err)
			return err
		}
	}
	// Still with the store acquired: a reopen, which would write a new beginning, no longer finds the log in the list.
	l.e.forget(l)
	l.lose(engine.ErrDeleted)
	return nil
}

// lose says why the log cannot be read any more.
func (l *log) lose(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = err
	if errors.Is(err, engine.ErrDeleted) {
		l.recent.Clear()
	}
	l.announceLocked()
}

// readable is why the log cannot be read any more.
func (l *log) readable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// ended is why the committer has ended.
func (l *log) ended() error {
	if l.e.ctx.Err() != nil {
		return engine.ErrClosed
	}
	return engine.ErrDeleted
}

// erase deletes all keys of a namespace, and its number, in one batch. It needs no free space to speak of, so that it helps where the disk
// is full. What it is kept as does not matter: it may not be configured any more. The caller has acquired the store.
func (s *store) erase(db *pebble.DB, name string, id uint32) error {
	b := db.NewBatch()
	defer b.Close()
	err := errors.Join(
		b.Delete(namespaceKey(name), nil),
		b.Delete(metaKey(metaEpochs, id), nil),
		b.Delete(metaKey(metaTrim, id), nil),
	)
	for _, kind := range []byte{kindLog, kindIndex, kindTopic, kindDedup} {
		p := prefix(kind, id)
		err = errors.Join(err, b.DeleteRange(p, after(p), nil))
	}
	if err != nil {
		return err
	}
	if err := s.apply(b, durable); err != nil {
		return err
	}
	s.names.forget(name)
	return nil
}

// eraseRecorded erases a namespace that has a record but no open log; false if it has none.
func (s *store) eraseRecorded(name string) (bool, error) {
	db, err := s.acquire()
	if err != nil {
		return false, err
	}
	defer s.release()
	if err := s.failure(); err != nil {
		return false, err
	}
	v, closer, err := db.Get(namespaceKey(name))
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, readError(err)
	}
	defer closer.Close()
	if len(v) != 4 {
		return false, readError(fmt.Errorf("%w: record of a namespace", errChecksum))
	}
	return true, s.erase(db, name, binary.BigEndian.Uint32(v))
}

// forget takes a number back. It is not given out again before the next start, when nothing is left under it.
func (n *numbers) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.known, name)
}
