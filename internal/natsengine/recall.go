package natsengine

import (
	"context"
	"encoding/base64"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

// idKey is hashID's text as bytes.
type idKey [idBytes]byte

const (
	idBytes = 16
	// catchUpWait is how long an append waits for what is in the stream already to come.
	catchUpWait = 5 * time.Second
)

func keyOf(id string) (k idKey, ok bool) {
	n, err := base64.RawURLEncoding.Decode(k[:], []byte(id))
	return k, err == nil && n == idBytes
}

// recall is where the events of the ring are that were published under an id, by whichever node. What a publisher sends again after a break is
// most often among them, and need not be sent to NATS to be known as such: there one makes it refuse the whole batch. Guarded
// by the log's mu.
type recall struct {
	at    map[idKey]place
	queue []noted // in order of offset
}

type noted struct {
	id     idKey
	offset uint64
}

type place struct {
	offset uint64
	time   int64
}

// note takes in an event; offsets rise. A later one under the same id, which NATS had forgotten, takes the place of the first.
func (r *recall) note(id string, offset uint64, time int64) {
	k, ok := keyOf(id)
	if !ok {
		return
	}
	if r.at == nil {
		r.at = map[idKey]place{}
	}
	r.at[k] = place{offset, time}
	r.queue = append(r.queue, noted{k, offset})
}

// forget forgets what lies below an offset.
func (r *recall) forget(below uint64) {
	for len(r.queue) > 0 && r.queue[0].offset < below {
		if old := r.queue[0]; r.at[old.id].offset == old.offset {
			delete(r.at, old.id)
		}
		r.queue = r.queue[1:]
	}
}

// known fills in the results of those entries that are known to be there, and returns which are left. sent may be empty; else it has what was
// sent of each, which may be what is there.
func (a *appending) known(at []int, sent []*sending, where func(idKey) (place, bool)) (leftAt []int, leftSent []*sending) {
	l := a.l
	oldest := time.Now().Add(-l.e.o.settings(l.name, *l.cfg.Load()).Duplicates).UnixMilli()
	leftAt, leftSent = make([]int, 0, len(at)), make([]*sending, 0, len(sent))
	for n, i := range at {
		en := &a.entries[i]
		var p place
		there := false
		if en.Dedup {
			k, _ := keyOf(hashID(en.Topic, en.ID))
			p, there = where(k)
		}
		switch { // what came while it was looked for may be what was sent
		case len(sent) > 0 && sent[n].isSeen():
			a.results[i], a.stored = sent[n].result(), true
			continue
		case there && p.time >= oldest:
			a.results[i] = engine.Result{Offset: p.offset, Timestamp: p.time, Duplicate: true}
			continue
		}
		leftAt = append(leftAt, i)
		if len(sent) > 0 {
			leftSent = append(leftSent, sent[n])
		}
	}
	return leftAt, leftSent
}

// recalled fills in the results of those entries that the log recalls.
func (a *appending) recalled(at []int, sent []*sending) (leftAt []int, leftSent []*sending) {
	return a.known(at, sent, func(k idKey) (place, bool) {
		a.l.mu.Lock()
		defer a.l.mu.Unlock()
		p, ok := a.l.recall.at[k]
		return p, ok
	})
}

// caughtUp does so when all has come that is in the stream by now: a batch was refused for what is there, and that may be on its way here.
func (a *appending) caughtUp(ctx context.Context, at []int, sent []*sending) (leftAt []int, leftSent []*sending) {
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	if i, err := a.l.e.info(ctx, a.l.stream, nil); err == nil {
		_ = a.l.await(ctx, i.State.Last) // what has come till then helps too
	}
	return a.recalled(at, sent)
}

// nearby does so with what lies in the stream behind an event that was there: what is sent again together was most often stored together. It
// reads on as long as it finds any.
func (a *appending) nearby(ctx context.Context, offset uint64, at []int, sent []*sending) (leftAt []int, leftSent []*sending) {
	for len(at) > 0 {
		head := a.l.State().Head
		g, err := a.l.get(ctx, getRequest{Sequence: offset + 1, Batch: getEvents, MaxBytes: getBytes})
		if err != nil {
			break // they are found out one by one
		}
		found := map[idKey]place{}
		for _, m := range g.messages {
			if k, ok := keyOf(m.id); ok && m.offset <= head { // nothing above head is ever told
				found[k] = place{m.offset, m.time}
			}
			offset = m.offset
		}
		before := len(at)
		at, sent = a.known(at, sent, func(k idKey) (place, bool) {
			p, ok := found[k]
			return p, ok
		})
		if len(at) == before {
			break
		}
	}
	return at, sent
}
