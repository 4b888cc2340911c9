package natsengine

import (
	"encoding/base64"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

// idKey is hashID's text as bytes.
type idKey [idBytes]byte

const idBytes = 16

func keyOf(id string) (k idKey, ok bool) {
	n, err := base64.RawURLEncoding.Decode(k[:], []byte(id))
	return k, err == nil && n == idBytes
}

// recall is where the events of the ring are that were published under an id, by whichever node. What a publisher sends again after a break is
// most often among them, and need not be sent to NATS to be known as such: one that is refused makes its whole batch go one by one. Guarded
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

// recalled fills in the results of those of n entries that are known to be duplicates, and returns which are left.
func (a *appending) recalled(from, n int) (left []int) {
	l := a.l
	oldest := time.Now().Add(-l.e.o.settings(l.name, *l.cfg.Load()).Duplicates).UnixMilli()
	left = make([]int, 0, n)
	for i := from; i < from+n; i++ {
		en := &a.entries[i]
		if !en.Dedup {
			left = append(left, i)
			continue
		}
		k, _ := keyOf(hashID(en.Topic, en.ID))
		l.mu.Lock()
		p, ok := l.recall.at[k]
		l.mu.Unlock()
		if !ok || p.time < oldest {
			left = append(left, i)
			continue
		}
		a.results[i] = engine.Result{Offset: p.offset, Timestamp: p.time, Duplicate: true}
	}
	return left
}
