package pebbleengine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// Bounds of a page where the request names none.
const (
	pageEvents = 4096
	pageBytes  = 256 << 10
	pageScan   = 16384
)

// Read implements engine.Log. Iterators live for one page: a slow reader never pins memtables or files.
func (l *log) Read(ctx context.Context, r engine.ReadRequest) (engine.Page, error) {
	if l.e.ctx.Err() != nil {
		return engine.Page{}, engine.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return engine.Page{}, err
	}
	s := l.State()
	if !s.History {
		return engine.Page{Scanned: max(r.After, s.Head)}, nil
	}
	if r.To == 0 || r.To > s.Head {
		r.To = s.Head
	}
	if r.After+1 < s.Oldest {
		return engine.Page{}, &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	if r.After >= r.To {
		return engine.Page{Scanned: r.After}, nil
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	p := newPage(r)
	var err error
	if n, ok := r.Pattern.Exact(); ok {
		err = l.readTopic(p, n)
	} else {
		err = l.readRange(p)
	}
	if err != nil {
		return engine.Page{}, readError(err)
	}
	// What was trimmed while the page was read may be missing from it.
	if s := l.State(); r.After+1 < s.Oldest {
		return engine.Page{}, &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	return p.Page, nil
}

// readError says what a failed read means to the caller.
func readError(err error) error {
	if err == nil {
		return nil
	}
	if pebble.IsCorruptionError(err) || errors.Is(err, errChecksum) {
		return fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
	}
	if errors.Is(err, pebble.ErrClosed) {
		return engine.ErrClosed
	}
	return err
}

// page is an engine.Page being filled. Events share one buffer.
type page struct {
	engine.Page
	r     engine.ReadRequest
	buf   []byte
	topic topic.Name // of the event before: topics repeat
}

func newPage(r engine.ReadRequest) *page {
	if r.MaxEvents <= 0 {
		r.MaxEvents = pageEvents
	}
	if r.MaxBytes <= 0 {
		r.MaxBytes = pageBytes
	}
	if r.MaxScan <= 0 {
		r.MaxScan = pageScan
	}
	return &page{Page: engine.Page{Scanned: r.After}, r: r}
}

// add appends a stored event; false if the page is full.
func (p *page) add(offset uint64, raw []byte) bool {
	v, err := getValue(raw)
	var name []byte
	if err == nil {
		name, err = wire.BodyTopic(v.body)
	}
	if err != nil {
		p.damaged(offset, offset)
		return true
	}
	// Match does not keep the name, so it may alias the store's buffer.
	if p.r.Pattern != everything && !p.r.Pattern.Match(topic.Stored(unsafe.String(unsafe.SliceData(name), len(name)))) {
		return true
	}
	size := len(v.body) + wire.MaxTrailer
	if len(p.Events) > 0 && (len(p.Events) >= p.r.MaxEvents || len(p.buf)+size > p.r.MaxBytes) {
		return false
	}
	if cap(p.buf)-len(p.buf) < size {
		p.buf = make([]byte, 0, max(size, min(p.r.MaxBytes, max(4096, 2*cap(p.buf)))))
	}
	if p.topic.String() != string(name) {
		p.topic = topic.Stored(string(name))
	}
	start := len(p.buf)
	p.buf = wire.AppendOffset(wire.AppendTimestamp(append(p.buf, v.body...), v.time), offset)
	p.Events = append(p.Events, engine.Event{
		Offset: offset, Topic: p.topic, Timestamp: v.time, Wire: p.buf[start:len(p.buf):len(p.buf)],
	})
	return true
}

func (p *page) damaged(from, to uint64) {
	if n := len(p.Damaged); n > 0 && p.Damaged[n-1].To+1 == from {
		p.Damaged[n-1].To = to
		return
	}
	p.Damaged = append(p.Damaged, engine.Range{From: from, To: to})
}

// readRange reads the log itself. Offsets are dense, so a missing one is damage.
func (l *log) readRange(p *page) error {
	it, err := l.st.db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, p.r.After+1),
		UpperBound: offsetKey(kindLog, l.id, p.r.To+1),
	})
	if err != nil {
		return err
	}
	defer it.Close()
	seen := 0
	for ok := it.First(); ok; ok = it.Next() {
		offset := keyOffset(it.Key())
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if seen == p.r.MaxScan || !p.add(offset, raw) {
			return nil
		}
		seen++
		if offset > p.Scanned+1 {
			p.damaged(p.Scanned+1, offset-1)
		}
		p.Scanned = offset
	}
	if err := it.Error(); err != nil {
		return err
	}
	p.Scanned = p.r.To
	return nil
}

// readTopic reads one topic through the index, bucket by bucket.
func (l *log) readTopic(p *page, n topic.Name) error {
	newest, err := getOffset(l.st.db, topicKey(l.id, n.String()))
	if err != nil {
		return err
	}
	to := min(p.r.To, newest)
	if to > p.r.After {
		full, err := l.readIndex(p, n, to)
		if err != nil || full {
			return err
		}
	}
	p.Scanned = p.r.To
	return nil
}

func (l *log) readIndex(p *page, n topic.Name, to uint64) (full bool, err error) {
	log, err := l.st.db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, p.r.After+1), UpperBound: offsetKey(kindLog, l.id, to+1),
	})
	if err != nil {
		return false, err
	}
	defer log.Close()
	err = l.eachOffset(n, p.r.After+1, to, func(offset uint64) (bool, error) {
		if !log.SeekGE(offsetKey(kindLog, l.id, offset)) || keyOffset(log.Key()) != offset {
			p.damaged(offset, offset)
			p.Scanned = offset
			return true, log.Error()
		}
		raw, err := log.ValueAndErr()
		if err != nil {
			return false, err
		}
		if !p.add(offset, raw) {
			full = true
			return false, nil
		}
		p.Scanned = offset
		return true, nil
	})
	return full, err
}

// eachOffset calls f with the topic's offsets from..to, ascending, until f returns false.
func (l *log) eachOffset(n topic.Name, from, to uint64, f func(uint64) (bool, error)) error {
	p := prefix(kindIndex, l.id)
	it, err := l.st.db.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
	if err != nil {
		return err
	}
	defer it.Close()
	for b := bucket(from); b <= bucket(to); b++ {
		key := indexKey(l.id, n, max(from, b<<bucketBits))
		same := len(key) - 8
		for ok := it.SeekGE(key); ok && len(it.Key()) == len(key) && bytes.Equal(it.Key()[:same], key[:same]); ok = it.Next() {
			offset := keyOffset(it.Key())
			if offset > to {
				return nil
			}
			if more, err := f(offset); err != nil || !more {
				return err
			}
		}
		if err := it.Error(); err != nil {
			return err
		}
	}
	return nil
}

// eachOffsetDown is eachOffset, descending.
func (l *log) eachOffsetDown(n topic.Name, from, to uint64, f func(uint64) bool) error {
	p := prefix(kindIndex, l.id)
	it, err := l.st.db.NewIter(&pebble.IterOptions{LowerBound: p, UpperBound: after(p)})
	if err != nil {
		return err
	}
	defer it.Close()
	for b := bucket(to); ; b-- {
		key := indexKey(l.id, n, min(to, (b+1)<<bucketBits-1))
		same := len(key) - 8
		for ok := it.SeekLT(after(key)); ok && len(it.Key()) == len(key) && bytes.Equal(it.Key()[:same], key[:same]); ok = it.Prev() {
			if offset := keyOffset(it.Key()); offset < from || !f(offset) {
				return nil
			}
		}
		if err := it.Error(); err != nil {
			return err
		}
		if b <= bucket(from) {
			return nil
		}
	}
}

// ReadAt implements engine.Log.
func (l *log) ReadAt(ctx context.Context, offsets []uint64, maxBytes int) (engine.Page, error) {
	if l.e.ctx.Err() != nil {
		return engine.Page{}, engine.ErrClosed
	}
	s := l.State()
	if !s.History {
		return engine.Page{}, engine.ErrNoHistory
	}
	if len(offsets) == 0 {
		return engine.Page{}, ctx.Err()
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	p := newPage(engine.ReadRequest{MaxBytes: maxBytes, MaxEvents: len(offsets)})
	for _, offset := range offsets {
		if err := ctx.Err(); err != nil {
			return engine.Page{}, err
		}
		raw, closer, err := l.st.db.Get(offsetKey(kindLog, l.id, offset))
		switch {
		case errors.Is(err, pebble.ErrNotFound) || err == nil && (offset < s.Oldest || offset > s.Head):
			p.damaged(offset, offset)
		case err != nil:
			return engine.Page{}, readError(err)
		default:
			if !p.add(offset, raw) {
				return p.Page, closer.Close()
			}
		}
		if closer != nil {
			if err := closer.Close(); err != nil {
				return engine.Page{}, err
			}
		}
		p.Scanned = offset
	}
	return p.Page, nil
}

// BeforeTime implements engine.Log: a binary search, since timestamps never fall.
func (l *log) BeforeTime(ctx context.Context, t int64) (uint64, error) {
	s := l.State()
	if !s.History {
		return s.Head, nil
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	low, high := s.Oldest, s.Head+1 // the answer + 1 lies in low..high
	for low < high {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		mid := low + (high-low)/2
		v, err := l.header(mid)
		if err != nil {
			return 0, readError(err)
		}
		if v.time < t {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low - 1, nil
}

// header reads size and time of an event without trusting its body.
func (l *log) header(offset uint64) (value, error) {
	raw, closer, err := l.st.db.Get(offsetKey(kindLog, l.id, offset))
	if err != nil {
		return value{}, err
	}
	defer closer.Close()
	if len(raw) < valueHeader {
		return value{}, errChecksum
	}
	return value{cum: binary.BigEndian.Uint64(raw[4:]), time: int64(binary.BigEndian.Uint64(raw[12:]))}, nil
}

// getOffset reads a key that holds an offset; 0 if there is none.
func getOffset(db *pebble.DB, key []byte) (uint64, error) {
	v, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, errChecksum
	}
	return binary.BigEndian.Uint64(v), nil
}

// scan calls f with every key from lower to below upper.
func scan(db *pebble.DB, lower, upper []byte, f func(k, v []byte) error) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(it.Key(), v); err != nil {
			return err
		}
	}
	return it.Error()
}
