package enginetest

import (
	"context"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Deleting, in the model.

func (e *modelEngine) Delete(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := topic.ParseNamespace(name); err != nil {
		return engine.ErrUnknownNamespace
	}
	if e.closed {
		return engine.ErrClosed
	}
	l, d := e.logs[name], e.disk
	if l == nil && !d.has(name) || l == nil && d.bug == "deleting only what is open" {
		return engine.ErrUnknownNamespace
	}
	if l != nil {
		l.commit.Lock() // an append in flight ends first
		defer l.commit.Unlock()
	}
	if d.has(name) && d.fails() {
		if l != nil {
			l.reopen(0)
		}
		return engine.ErrStorageFailed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.logs[name]
	if d.bug != "deleting only in memory" {
		delete(d.logs, name)
	}
	delete(e.logs, name)
	if l == nil {
		return nil
	}
	switch d.bug {
	case "deleting keeps the epochs":
		d.logs[name] = &stored{oldest: 1, epochs: old.epochs}
	case "deleting keeps the ids":
		kept := &stored{oldest: old.oldest, epochs: []epoch{{"0123456789abcdef", 1}}}
		for _, r := range old.events {
			if r.entry.Dedup {
				kept.events = append(kept.events, r)
			}
		}
		kept.oldest = uint64(len(kept.events)) + 1
		d.logs[name] = kept
	case "deleting empties the log":
		l.s.events, l.s.oldest, l.head = nil, 1, 0
		e.logs[name] = l
		l.openLocked()
		return nil
	}
	l.gone = d.bug != "a deleted log goes on"
	l.moveLocked()
	return nil
}

func (d *disk) has(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.logs[name] != nil
}

// deleted is why nothing can be done with the log.
func (l *modelLog) deleted() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return engine.ErrDeleted
	}
	return nil
}
