package pebbleengine

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// maxEpochs bounds the epochs a namespace remembers; positions of older ones are refused.
const maxEpochs = 4096

// epoch is a stretch of the log that begins at offset first.
type epoch struct {
	id    string // 16 hexadecimal digits
	first uint64
}

// newEpoch is 16 random hexadecimal digits.
func newEpoch() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// numbers gives namespaces their numbers, which stand for them in keys.
type numbers struct {
	mu    sync.Mutex
	known map[string]uint32
	last  uint32
}

// load reads the numbers that were given out.
func (n *numbers) load(db *pebble.DB) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = map[string]uint32{}
	return scan(db, keyNamespaces, after(keyNamespaces), func(k, v []byte) error {
		if len(v) != 4 {
			return fmt.Errorf("%w: record of a namespace", errChecksum)
		}
		id := binary.BigEndian.Uint32(v)
		n.known[string(k[len(keyNamespaces):])] = id
		n.last = max(n.last, id)
		return nil
	})
}

// number returns the namespace's number. It counts once it is written.
func (n *numbers) number(name string) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	id, ok := n.known[name]
	if !ok {
		if n.known == nil {
			n.known = map[string]uint32{}
		}
		n.last++
		id = n.last
		n.known[name] = id
	}
	return id
}

// load reads the log's state from the store, begins a new epoch and applies retention, in that order: an event beyond the limits
// is never seen. The caller has acquired the store, and no committer is running.
func (l *log) load(db *pebble.DB) error {
	last, err := l.loadLast(db)
	if err != nil {
		return err
	}
	t, err := l.loadTrim(db, last.offset)
	if err != nil {
		return err
	}
	now := max(l.e.o.Now().UnixMilli(), last.time)
	ids := newDedup(*l.limits.Load())
	if err := ids.load(db, l.id, now); err != nil {
		return err
	}
	epochs, err := l.loadEpochs(db)
	if err != nil {
		return err
	}
	epochs = append(epochs, epoch{newEpoch(), last.offset + 1})
	epochs = epochs[max(0, len(epochs)-maxEpochs):]
	scope := marks{l: l, db: db, head: last.offset, total: last.total}
	if err := t.advance(*l.limits.Load(), scope, l.e.o.Now()); err != nil {
		return err
	}
	if err := l.save(db, epochs, t); err != nil {
		return err
	}
	l.next, l.lastTime, l.total, l.ids, l.trim = last.offset+1, last.time, last.total, ids, t

	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs, l.head, l.oldest = epochs, last.offset, t.oldest
	l.recent.Clear()
	l.lost = nil
	l.announceLocked()
	return nil
}

// lastEvent is what the newest stored event says about all of them.
type lastEvent struct {
	offset uint64 // 0: there is none
	time   int64
	total  uint64
}

// loadLast reads the newest event of all, retained or not: deletion always leaves it, so that offsets, timestamps and sizes go
// on rising from it. Where it is damaged, time and size are those of the newest one that is whole.
func (l *log) loadLast(db *pebble.DB) (last lastEvent, err error) {
	p := prefix(kindLog, l.id)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
	if err != nil {
		return last, err
	}
	defer it.Close()
	var extra uint64
	for ok := it.Last(); ok; ok = it.Prev() {
		raw, err := it.ValueAndErr()
		if err != nil {
			return last, err
		}
		last.offset = max(last.offset, keyOffset(it.Key()))
		if v, err := getValue(raw); err == nil {
			last.time, last.total = v.time, v.total+extra
			break
		}
		extra += uint64(len(raw))
		last.total = extra
	}
	return last, it.Error()
}

func (l *log) loadEpochs(db *pebble.DB) ([]epoch, error) {
	v, closer, err := db.Get(metaKey(metaEpochs, l.id))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	if len(v)%16 != 0 {
		return nil, fmt.Errorf("%w: epochs of namespace %q", errChecksum, l.name)
	}
	var list []epoch
	for ; len(v) > 0; v = v[16:] {
		list = append(list, epoch{hex.EncodeToString(v[:8]), binary.BigEndian.Uint64(v[8:])})
	}
	return list, nil
}

// save writes what must be durable before the log is used.
func (l *log) save(db *pebble.DB, epochs []epoch, t trim) error {
	v := make([]byte, 0, 16*len(epochs))
	for _, e := range epochs {
		id, err := hex.DecodeString(e.id)
		if err != nil {
			return err
		}
		v = binary.BigEndian.AppendUint64(append(v, id...), e.first)
	}
	b := db.NewBatch()
	defer b.Close()
	err := errors.Join(
		b.Set(namespaceKey(l.name), binary.BigEndian.AppendUint32(nil, l.id), nil),
		b.Set(metaKey(metaEpochs, l.id), v, nil),
		b.Set(metaKey(metaTrim, l.id), t.encode(), nil),
	)
	if err != nil {
		return err
	}
	return l.st.apply(b, durable)
}
