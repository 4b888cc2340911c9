package pebbleengine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
)

// trim is how far retention has come. The trim point is exact: it is stored in the same commit as the event that moved it, and
// nothing below it is ever seen again. Keys are deleted later, in steps that are worth a range tombstone, and only below a
// trim point that readers know of: what a reader misses is then known to be gone.
type trim struct {
	oldest  uint64 // oldest retained offset
	deleted uint64 // first offset whose event is not yet deleted
	bucket  uint64 // first index bucket not yet deleted

	at    mark // of oldest, where known is true
	known bool
	topic []byte // how far tidying bucket has come; nil: at its beginning
}

const (
	deleteEvents = 4096     // events that are worth a range tombstone
	deleteBytes  = 16 << 20 // bytes, likewise
	tidyTopics   = 1024     // topics of a bucket that are looked at in one step
)

// loadTrim reads the trim point; last is the newest offset of all.
func (l *log) loadTrim(db *pebble.DB, last uint64) (trim, error) {
	t := trim{oldest: 1, deleted: 1}
	v, closer, err := db.Get(metaKey(metaTrim, l.id))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return t, err
	default:
		defer closer.Close()
		if len(v) != 24 {
			return t, fmt.Errorf("%w: trim point of namespace %q", errChecksum, l.name)
		}
		t.oldest = binary.BigEndian.Uint64(v)
		t.deleted = binary.BigEndian.Uint64(v[8:])
		t.bucket = binary.BigEndian.Uint64(v[16:])
	}
	// What was trimmed before a failure stays trimmed, whatever of it had been written.
	t.oldest = min(max(t.oldest, l.trim.oldest), last+1)
	return t, nil
}

func (t *trim) encode() []byte {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 24), t.oldest)
	v = binary.BigEndian.AppendUint64(v, t.deleted)
	return binary.BigEndian.AppendUint64(v, t.bucket)
}

// mark is where an event stands in the log: the bytes of all values before it, and its timestamp. Both rise with the offset.
type mark struct {
	before uint64
	time   int64
}

// marks finds the marks of the events up to head, of which those from first on may not be committed yet.
type marks struct {
	l       *log
	db      *pebble.DB
	head    uint64
	total   uint64 // bytes of all values up to head
	first   uint64
	pending []mark
}

// find returns the mark of an event; of the next one that can be read if it is damaged.
func (m marks) find(offset uint64) (mark, error) {
	for skip := uint64(1); ; skip *= 2 {
		k, err := m.findFrom(offset)
		if !pebble.IsCorruptionError(err) {
			return k, err
		}
		offset += skip
	}
}

func (m marks) findFrom(offset uint64) (mark, error) {
	end, behind := m.head, mark{before: m.total, time: math.MaxInt64}
	if len(m.pending) > 0 {
		end, behind = m.first-1, m.pending[0]
		if offset >= m.first {
			return m.pending[offset-m.first], nil
		}
	}
	if offset > end {
		return behind, nil
	}
	it, err := m.db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, m.l.id, offset), UpperBound: offsetKey(kindLog, m.l.id, end+1),
	})
	if err != nil {
		return mark{}, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		raw, err := it.ValueAndErr()
		if err != nil {
			return mark{}, err
		}
		if v, err := getValue(raw); err == nil {
			return mark{before: v.total - uint64(len(raw)), time: v.time}, nil
		}
	}
	return behind, it.Error()
}

// advance moves the trim point over events beyond the limits: a search, since bytes and time rise with the offset.
func (t *trim) advance(cfg engine.Config, m marks, now time.Time) error {
	if cfg.MaxEvents > 0 && m.head >= cfg.MaxEvents {
		t.moveTo(max(t.oldest, m.head-cfg.MaxEvents+1))
	}
	if cfg.MaxBytes == 0 && cfg.MaxAge == 0 || t.oldest > m.head {
		return nil
	}
	cutoff := now.Add(-cfg.MaxAge).UnixMilli()
	over := func(k mark) bool {
		return cfg.MaxBytes > 0 && m.total-k.before > cfg.MaxBytes || cfg.MaxAge > 0 && k.time < cutoff
	}
	if !t.known {
		var err error
		if t.at, err = m.find(t.oldest); err != nil {
			return err
		}
		t.known = true
	}
	if !over(t.at) {
		return nil
	}
	within, err := search(t.oldest, m.head+1, func(offset uint64) (bool, error) {
		k, err := m.find(offset)
		return over(k), err
	})
	if err != nil {
		return err
	}
	t.moveTo(within)
	return nil
}

func (t *trim) moveTo(oldest uint64) {
	if oldest != t.oldest {
		t.oldest, t.known = oldest, false
	}
}

// search returns the first offset in low+1..high that is not over, where low is over and high is not. It looks near low first.
func search(low, high uint64, over func(uint64) (bool, error)) (uint64, error) {
	for step := uint64(1); low+1 < high; {
		probe := low + step
		if probe >= high {
			probe, step = low+(high-low)/2, 1
		}
		is, err := over(probe)
		if err != nil {
			return 0, err
		}
		if is {
			low, step = probe, 2*step
		} else {
			high, step = probe, 1
		}
	}
	return high, nil
}

// tick applies what the passing of time alone brings about.
func (l *log) tick() {
	if l.st == nil {
		l.ids.limit(*l.limits.Load())
		l.ids.forget(max(l.e.o.Now().UnixMilli(), l.lastTime))
		return
	}
	if err := l.age(); err != nil {
		l.e.o.Logger.Error("retention by age failed, trying again later", "namespace", l.name, "err", err)
	}
	l.tidy()
}

// age forgets old ids and trims old events.
func (l *log) age() error {
	db, err := l.st.acquire()
	if err != nil {
		return err
	}
	defer l.st.release()
	l.ids.limit(*l.limits.Load())
	l.ids.forget(max(l.e.o.Now().UnixMilli(), l.lastTime))
	t := l.trim
	if err := t.advance(*l.limits.Load(), marks{l: l, db: db, head: l.next - 1, total: l.total}, l.e.o.Now()); err != nil {
		return err
	}
	return l.moveTrim(db, t)
}

// moveTrim stores a trim point and puts it in force.
func (l *log) moveTrim(db *pebble.DB, t trim) error {
	if t.oldest == l.trim.oldest {
		l.trim = t
		return nil
	}
	b := db.NewBatch()
	defer b.Close()
	if err := b.Set(metaKey(metaTrim, l.id), t.encode(), nil); err != nil {
		return err
	}
	if err := l.st.apply(b, levelOf(l.history)); err != nil {
		return err
	}
	l.trim = t
	l.mu.Lock()
	defer l.mu.Unlock()
	l.oldest = t.oldest
	return nil
}

// tidy deletes keys below the trim point, step by step, while no append waits.
func (l *log) tidy() {
	for l.st != nil && l.e.ctx.Err() == nil {
		more, err := l.tidyStep()
		if err != nil {
			l.e.o.Logger.Error("trimmed events cannot be deleted, trying again later", "namespace", l.name, "err", err)
		}
		if err != nil || !more || len(l.queue) > 0 {
			return
		}
	}
}

func (l *log) tidyStep() (more bool, err error) {
	// First the store: while it is held the log cannot be loaded anew.
	db, err := l.st.acquire()
	if err != nil {
		return false, err
	}
	defer l.st.release()
	t := l.trim
	// The newest event stays, retained or not, so that offsets go on from it.
	keep := min(t.oldest, l.next-1)
	if keep <= t.deleted && t.bucket >= bucket(keep) {
		return false, nil
	}
	b := db.NewBatch()
	defer b.Close()
	if err := l.deleteEvents(db, b, &t, keep); err != nil {
		return false, err
	}
	if t.bucket < bucket(keep) {
		if err := l.tidyBucket(db, b, &t); err != nil {
			return false, err
		}
	}
	if b.Empty() && t.bucket == l.trim.bucket {
		l.trim = t
		return t.bucket < bucket(keep), nil
	}
	if err := b.Set(metaKey(metaTrim, l.id), t.encode(), nil); err != nil {
		return false, err
	}
	if err := l.st.apply(b, buffered); err != nil {
		return false, err
	}
	l.trim = t
	return t.bucket < bucket(keep), nil
}

// deleteEvents deletes the events below keep, if that is worth it.
func (l *log) deleteEvents(db *pebble.DB, b *pebble.Batch, t *trim, keep uint64) error {
	if keep <= t.deleted {
		return nil
	}
	if keep-t.deleted < deleteEvents {
		scope := marks{l: l, db: db, head: l.next - 1, total: l.total}
		from, err := scope.find(t.deleted)
		if err != nil {
			return err
		}
		to, err := scope.find(keep)
		if err != nil || to.before-from.before < deleteBytes {
			return err
		}
	}
	if err := b.DeleteRange(offsetKey(kindLog, l.id, t.deleted), offsetKey(kindLog, l.id, keep), nil); err != nil {
		return err
	}
	t.deleted = keep
	return nil
}

// tidyBucket goes through the topics of the first index bucket, deletes those from the topic table that have no retained events,
// and then the bucket. Only the committer writes the topic table, so nothing can come in between.
func (l *log) tidyBucket(db *pebble.DB, b *pebble.Batch, t *trim) error {
	lower := bucketKey(l.id, t.bucket)
	upper := after(lower)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close()
	ok := false
	if t.topic == nil {
		ok = it.First()
	} else {
		ok = it.SeekGE(t.topic)
	}
	for range tidyTopics {
		if !ok {
			break
		}
		name := string(indexTopic(it.Key()))
		newest, err := getOffset(db, topicKey(l.id, name))
		if err != nil {
			return err
		}
		if newest != 0 && newest < t.oldest {
			if err := b.Delete(topicKey(l.id, name), nil); err != nil {
				return err
			}
		}
		t.topic = append(append(append([]byte(nil), lower...), name...), 1) // behind the topic's keys, which go on with 0
		ok = it.SeekGE(t.topic)
	}
	if ok {
		return nil
	}
	if err := it.Error(); err != nil {
		return err
	}
	t.bucket, t.topic = t.bucket+1, nil
	return b.DeleteRange(lower, upper, nil)
}
