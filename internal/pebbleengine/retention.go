package pebbleengine

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// trim is how far retention has come. The trim point is exact and takes effect at once; keys are deleted later, in steps
// that are worth a range tombstone.
type trim struct {
	oldest  uint64 // oldest retained offset
	deleted uint64 // first offset whose event is not yet deleted
	bucket  uint64 // first index bucket not yet deleted
	cum     uint64 // bytes of all events below oldest
	time    int64  // of the event at oldest; 0 if there is none
}

const (
	deleteEvents = 4096     // events that are worth a range tombstone
	deleteBytes  = 16 << 20 // bytes, likewise
)

// loadTrim reads the trim point. The newest event is last; it is never deleted.
func (l *log) loadTrim(db *pebble.DB, last uint64) (trim, error) {
	t := trim{oldest: 1, deleted: 1}
	v, closer, err := db.Get(metaKey('t', l.id))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return t, err
	default:
		defer closer.Close()
		if len(v) != 32 {
			return t, errChecksum
		}
		t.oldest = binary.BigEndian.Uint64(v)
		t.deleted = binary.BigEndian.Uint64(v[8:])
		t.bucket = binary.BigEndian.Uint64(v[16:])
		t.cum = binary.BigEndian.Uint64(v[24:])
	}
	t.oldest = min(t.oldest, last+1)
	return t, nil
}

func (t *trim) encode() []byte {
	v := binary.BigEndian.AppendUint64(nil, t.oldest)
	v = binary.BigEndian.AppendUint64(v, t.deleted)
	v = binary.BigEndian.AppendUint64(v, t.bucket)
	return binary.BigEndian.AppendUint64(v, t.cum)
}

// retain moves the trim point as the namespace's limits ask. It runs where the committer runs, with st.mu held.
func (l *log) retain(now time.Time) error {
	head := l.next - 1
	t := l.trim
	if err := l.advance(&t, head, now); err != nil {
		return err
	}
	if t.oldest == l.trim.oldest {
		l.trim = t // the time of the oldest event may have become known
		return nil
	}
	b := l.st.db.NewBatch()
	defer b.Close()
	if err := l.deleteBelow(b, &t, head); err != nil {
		return err
	}
	if err := b.Set(metaKey('t', l.id), t.encode(), nil); err != nil {
		return err
	}
	// Readers see the trim point first, so that what they miss afterwards is known to be gone.
	l.mu.Lock()
	l.oldest = t.oldest
	l.mu.Unlock()
	if err := l.st.apply(b, false); err != nil {
		return err
	}
	l.trim = t
	return nil
}

// advance moves t.oldest over events beyond the limits.
func (l *log) advance(t *trim, head uint64, now time.Time) error {
	byCount := uint64(0)
	if l.cfg.MaxEvents > 0 && head > l.cfg.MaxEvents {
		byCount = head - l.cfg.MaxEvents + 1
	}
	cutoff := int64(0)
	if l.cfg.MaxAge > 0 {
		cutoff = now.Add(-l.cfg.MaxAge).UnixMilli()
	}
	over := func() bool {
		return t.oldest < byCount || l.cfg.MaxBytes > 0 && l.cum-t.cum > l.cfg.MaxBytes || t.time != 0 && t.time < cutoff
	}
	for t.oldest <= head {
		if t.time == 0 && cutoff > 0 {
			v, err := l.header(t.oldest)
			if err != nil {
				return err
			}
			t.time = v.time
		}
		if !over() {
			return nil
		}
		if err := l.advanceOver(t, head, over); err != nil {
			return err
		}
	}
	return nil
}

// advanceOver walks the log from t.oldest while over says so.
func (l *log) advanceOver(t *trim, head uint64, over func() bool) error {
	it, err := l.st.db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, t.oldest), UpperBound: offsetKey(kindLog, l.id, head+1),
	})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if len(raw) < valueHeader {
			return errChecksum
		}
		offset := keyOffset(it.Key())
		t.oldest, t.time = offset, int64(binary.BigEndian.Uint64(raw[12:]))
		if !over() {
			return nil
		}
		t.cum = binary.BigEndian.Uint64(raw[4:])
	}
	t.oldest, t.time = head+1, 0
	return it.Error()
}

// deleteBelow adds the deletions that are worth it to b. The newest event stays, so that offsets go on from it.
func (l *log) deleteBelow(b *pebble.Batch, t *trim, head uint64) error {
	keep := min(t.oldest, head)
	if keep > t.deleted {
		first, err := l.header(t.deleted)
		if err != nil {
			return err
		}
		if keep-t.deleted >= deleteEvents || t.cum-min(t.cum, first.cum) >= deleteBytes {
			if err := b.DeleteRange(offsetKey(kindLog, l.id, t.deleted), offsetKey(kindLog, l.id, keep), nil); err != nil {
				return err
			}
			t.deleted = keep
		}
	}
	for ; t.bucket < bucket(keep); t.bucket++ {
		if err := l.deleteBucket(b, t); err != nil {
			return err
		}
	}
	return nil
}

// deleteBucket drops an index bucket below the trim point, and the topics whose newest event was in it.
func (l *log) deleteBucket(b *pebble.Batch, t *trim) error {
	lower := bucketKey(l.id, t.bucket)
	upper := after(lower)
	var before []byte
	err := scan(l.st.db, lower, upper, func(k, _ []byte) error {
		name := indexTopic(k)
		if string(name) == string(before) {
			return nil
		}
		before = append(before[:0], name...)
		key := topicKey(l.id, string(name))
		newest, err := getOffset(l.st.db, key)
		if err != nil || newest >= t.oldest {
			return err
		}
		return b.Delete(key, nil)
	})
	if err != nil {
		return err
	}
	return b.DeleteRange(lower, upper, nil)
}
