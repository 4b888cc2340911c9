package pebbleengine

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// What a configuration without limits gets: ids cost memory, so there are always some.
const (
	defaultDedupWindow = 2 * time.Minute
	defaultDedupIDs    = 1 << 20
)

// idHash stands for a topic and an event id. Cut from SHA-256, so that nobody can make two that meet.
type idHash [16]byte

func hashID(n topic.Name, id string) idHash {
	buf := make([]byte, 0, topic.MaxBytes+1+128)
	buf = append(append(append(buf, n.String()...), 0), id...)
	sum := sha256.Sum256(buf)
	return idHash(sum[:16])
}

// first is what the first publish of an id got.
type first struct {
	offset uint64 // 0 where nothing is kept
	time   int64
}

// remembered is one id of a round, and the offset of its event.
type remembered struct {
	id     idHash
	offset uint64
}

// idBatch is the ids of one commit, stored under the offset of the first.
type idBatch struct {
	key  uint64
	time int64
	ids  []idHash
}

// dedup remembers event ids for a window of time, at most a number of them (the last commit's are always all remembered).
// It is owned by the committer. In the store it is one key per commit, apart from the log, so that it outlives trimming.
type dedup struct {
	window int64 // milliseconds
	most   int
	known  map[idHash]first
	queue  []idBatch // oldest first
	kept   uint64    // keys below are deleted from the store
}

func newDedup(cfg engine.Config) *dedup {
	d := &dedup{known: map[idHash]first{}}
	d.limit(cfg)
	return d
}

// limit says how long and how many ids are remembered, from the next forgetting on.
func (d *dedup) limit(cfg engine.Config) {
	d.window, d.most = cfg.DedupWindow.Milliseconds(), cfg.DedupIDs
	if d.window <= 0 {
		d.window = defaultDedupWindow.Milliseconds()
	}
	if d.most <= 0 {
		d.most = defaultDedupIDs
	}
}

func (d *dedup) find(id idHash, now int64) (first, bool) {
	f, ok := d.known[id]
	return f, ok && now-f.time <= d.window
}

// save adds a round's ids to its batch.
func (d *dedup) save(b *pebble.Batch, ns uint32, now int64, ids []remembered) error {
	if len(ids) == 0 {
		return nil
	}
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 8+24*len(ids)), uint64(now))
	for _, r := range ids {
		v = binary.BigEndian.AppendUint64(append(v, r.id[:]...), r.offset)
	}
	if err := b.Set(offsetKey(kindDedup, ns, ids[0].offset), v, nil); err != nil {
		return err
	}
	// Range tombstones are worth it only for many keys.
	const worth = 4096
	if len(d.queue) == 0 || d.queue[0].key < d.kept+worth {
		return nil
	}
	d.kept = d.queue[0].key
	return b.DeleteRange(offsetKey(kindDedup, ns, 0), offsetKey(kindDedup, ns, d.kept), nil)
}

// remember takes over the ids of a committed round.
func (d *dedup) remember(now int64, ids []remembered, kept bool) {
	if len(ids) == 0 {
		return
	}
	batch := idBatch{key: ids[0].offset, time: now, ids: make([]idHash, len(ids))}
	for i, r := range ids {
		batch.ids[i] = r.id
		f := first{time: now}
		if kept {
			f.offset = r.offset
		}
		d.known[r.id] = f
	}
	d.queue = append(d.queue, batch)
	d.forget(now)
}

// forget drops batches that are past the window, and the oldest while there are too many ids.
func (d *dedup) forget(now int64) {
	n := 0
	for n < len(d.queue) && (now-d.queue[n].time > d.window || n+1 < len(d.queue) && len(d.known) > d.most) {
		for _, id := range d.queue[n].ids {
			// An id that came again after its window belongs to a younger batch.
			if d.known[id].time == d.queue[n].time {
				delete(d.known, id)
			}
		}
		n++
	}
	clear(d.queue[:n])
	d.queue = d.queue[n:]
}

// load reads the ids that are still in the window. They were committed together with their events, so there are none whose
// events are not.
func (d *dedup) load(db *pebble.DB, ns uint32, now int64) error {
	p := prefix(kindDedup, ns)
	err := scan(db, p, after(p), func(k, v []byte) error {
		if len(v) < 8 || (len(v)-8)%24 != 0 {
			return fmt.Errorf("%w: event ids", errChecksum)
		}
		batch := idBatch{key: keyOffset(k), time: int64(binary.BigEndian.Uint64(v))}
		if now-batch.time > d.window {
			return nil
		}
		for v = v[8:]; len(v) > 0; v = v[24:] {
			id := idHash(v)
			batch.ids = append(batch.ids, id)
			d.known[id] = first{binary.BigEndian.Uint64(v[16:]), batch.time}
		}
		d.queue = append(d.queue, batch)
		return nil
	})
	d.forget(now)
	return err
}
