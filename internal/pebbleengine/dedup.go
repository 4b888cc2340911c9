package pebbleengine

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// idHash stands for a topic and an event id. Cut from SHA-256, so that nobody can make two that meet.
type idHash [16]byte

func hashID(n topic.Name, id string) idHash {
	buf := make([]byte, 0, topic.MaxBytes+1+255)
	buf = append(append(append(buf, n.String()...), 0), id...)
	sum := sha256.Sum256(buf)
	return idHash(sum[:16])
}

// first is what the first publish of an id got.
type first struct {
	offset uint64
	time   int64
}

// remembered is one id of a round.
type remembered struct {
	id     idHash
	offset uint64
}

// idBatch is the ids of one commit, stored under the offset of its first event.
type idBatch struct {
	key  uint64
	time int64
	ids  []idHash
}

// dedup remembers event ids for a window of time, at most a number of them. It is owned by the committer. In the store it is
// one key per commit, apart from the log, so that it outlives trimming.
type dedup struct {
	window int64 // milliseconds
	most   int
	known  map[idHash]first
	queue  []idBatch // oldest first
	from   uint64    // keys below are deleted from the store
}

func newDedup(cfg engine.Config) *dedup {
	return &dedup{window: cfg.DedupWindow.Milliseconds(), most: cfg.DedupIDs, known: map[idHash]first{}}
}

func (d *dedup) find(id idHash, now int64) (first, bool) {
	f, ok := d.known[id]
	return f, ok && now-f.time <= d.window
}

func (d *dedup) add(id idHash, f first) { d.known[id] = f }

// save adds the round's ids to its batch, and forgets what is too old or too much. b is nil where nothing is kept.
func (d *dedup) save(b *pebble.Batch, ns uint32, now int64, ids []remembered) error {
	if len(ids) == 0 {
		return nil
	}
	key := ids[0].offset
	batch := idBatch{key: key, time: now, ids: make([]idHash, len(ids))}
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+24*len(ids)), uint64(now))
	for i, r := range ids {
		batch.ids[i] = r.id
		v = binary.BigEndian.AppendUint64(append(v, r.id[:]...), r.offset)
	}
	d.queue = append(d.queue, batch)
	d.forget(now)
	if b == nil {
		return nil
	}
	if err := b.Set(offsetKey(kindDedup, ns, key), v, nil); err != nil {
		return err
	}
	// Range tombstones are worth it only for many keys.
	if keep := d.queue[0].key; keep > d.from+4096 {
		if err := b.DeleteRange(offsetKey(kindDedup, ns, 0), offsetKey(kindDedup, ns, keep), nil); err != nil {
			return err
		}
		d.from = keep
	}
	return nil
}

// forget drops batches that are past the window, and the oldest while there are too many ids.
func (d *dedup) forget(now int64) {
	for len(d.queue) > 1 && (now-d.queue[0].time > d.window || len(d.known) > d.most) {
		for _, id := range d.queue[0].ids {
			// An id that came again after its window belongs to a younger batch.
			if d.known[id].time == d.queue[0].time {
				delete(d.known, id)
			}
		}
		d.queue = d.queue[1:]
	}
}

// load reads the ids that are still in the window. Ids of events above last were never committed: there are none, since they
// are in the batch of their events.
func (d *dedup) load(db *pebble.DB, ns uint32, last uint64, now int64) error {
	p := prefix(kindDedup, ns)
	err := scan(db, p, after(p), func(k, v []byte) error {
		if len(v) < 8 || (len(v)-8)%24 != 0 {
			return errChecksum
		}
		batch := idBatch{key: keyOffset(k), time: int64(binary.BigEndian.Uint64(v))}
		for v = v[8:]; len(v) > 0; v = v[24:] {
			id := idHash(v[:16])
			batch.ids = append(batch.ids, id)
			d.known[id] = first{binary.BigEndian.Uint64(v[16:]), batch.time}
		}
		d.queue = append(d.queue, batch)
		return nil
	})
	if err != nil {
		return err
	}
	d.forget(now)
	return nil
}
