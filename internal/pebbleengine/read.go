package pebbleengine

import (
	"context"
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
	db, s, err := l.view(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	if !s.History {
		return engine.Page{Scanned: max(r.After, s.Head)}, nil
	}
	defer l.leave()
	if r.To == 0 || r.To > s.Head {
		r.To = s.Head
	}
	if r.After+1 < s.Oldest {
		return engine.Page{}, &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	p := newPage(r)
	if r.After >= r.To {
		return p.Page, nil
	}
	if n, ok := r.Pattern.Exact(); ok {
		err = l.readTopic(db, p, n)
	} else {
		err = l.readRange(db, p)
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

// view gives access to the store, and the log's state as it is behind that access: reopening cannot come in between. The caller
// must leave it, unless the log keeps no history.
func (l *log) view(ctx context.Context) (*pebble.DB, engine.State, error) {
	if l.e.ctx.Err() != nil {
		return nil, engine.State{}, engine.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, engine.State{}, err
	}
	if l.st == nil {
		return nil, l.State(), l.readable()
	}
	l.gate.RLock()
	db, err := l.st.acquire()
	if err != nil {
		l.gate.RUnlock()
		return nil, engine.State{}, err
	}
	if err := l.readable(); err != nil {
		l.leave()
		return nil, engine.State{}, err
	}
	return db, l.State(), nil
}

// leave ends a view.
func (l *log) leave() {
	l.st.release()
	l.gate.RUnlock()
}

// readError says what a failed read means to the caller.
func readError(err error) error {
	var many *engine.TooManyTopicsError
	switch {
	case err == nil, errors.As(err, &many), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, engine.ErrStorageFailed), errors.Is(err, engine.ErrStorageFull):
		return err
	case pebble.IsCorruptionError(err), errors.Is(err, errChecksum):
		return fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
	default:
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	}
}

// page is an engine.Page being filled. Events share buffers.
type page struct {
	engine.Page
	r     engine.ReadRequest
	bytes int
	buf   []byte
	topic topic.Name // of the event before
	names map[string]topic.Name
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

// add deals with the next stored event; false if the page is full. raw may be nil: then the event is missing.
func (p *page) add(offset uint64, raw []byte) bool {
	v, err := getValue(raw)
	var name []byte
	if err == nil {
		name, err = wire.BodyTopic(v.body)
	}
	if err != nil {
		p.damaged(offset, offset)
		p.Scanned = offset
		return true
	}
	if p.matches(name) && !p.take(offset, v, name) {
		return false
	}
	p.Scanned = offset
	return true
}

// storedTopic is the topic in a stored event; nil if that is damaged.
func storedTopic(raw []byte) []byte {
	v, err := getValue(raw)
	if err != nil {
		return nil
	}
	name, err := wire.BodyTopic(v.body)
	if err != nil {
		return nil
	}
	return name
}

// matches does not keep the name, so the topic may alias the store's buffer.
func (p *page) matches(name []byte) bool {
	return p.r.Pattern == (topic.Pattern{}) || p.r.Pattern.Match(alias(name))
}

// alias is a topic that lives as long as the bytes of its name.
func alias(name []byte) topic.Name {
	return topic.Stored(unsafe.String(unsafe.SliceData(name), len(name)))
}

func (p *page) take(offset uint64, v value, name []byte) bool {
	size := len(v.body) + wire.MaxTrailer
	if len(p.Events) > 0 && (len(p.Events) >= p.r.MaxEvents || p.bytes+size > p.r.MaxBytes) {
		return false
	}
	if cap(p.buf)-len(p.buf) < size {
		p.buf = make([]byte, 0, max(size, min(p.r.MaxBytes-p.bytes, max(8<<10, 4*cap(p.buf)))))
	}
	start := len(p.buf)
	p.buf = wire.AppendOffset(wire.AppendTimestamp(append(p.buf, v.body...), v.time), offset)
	p.bytes += len(p.buf) - start
	if p.Events == nil {
		p.Events = make([]engine.Event, 0, min(p.r.MaxEvents, 64))
	}
	p.Events = append(p.Events, engine.Event{
		Offset: offset, Topic: p.name(name), Timestamp: v.time, Wire: p.buf[start:len(p.buf):len(p.buf)],
	})
	return true
}

// name makes a topic that may be kept. A page has few topics and many events.
func (p *page) name(name []byte) topic.Name {
	if p.topic.String() == string(name) {
		return p.topic
	}
	n, ok := p.names[string(name)]
	if !ok {
		if p.names == nil {
			p.names = map[string]topic.Name{}
		}
		n = topic.Stored(string(name))
		p.names[n.String()] = n
	}
	p.topic = n
	return n
}

func (p *page) damaged(from, to uint64) {
	if n := len(p.Damaged); n > 0 && p.Damaged[n-1].To+1 == from {
		p.Damaged[n-1].To = to
		return
	}
	p.Damaged = append(p.Damaged, engine.Range{From: from, To: to})
}

// readRange reads the log itself. Offsets are dense, so a missing one is damage. Where a whole block of the database is damaged,
// it looks for the next event that can be read.
func (l *log) readRange(db *pebble.DB, p *page) error {
	for seen, skip := 0, uint64(0); ; {
		from := p.Scanned + 1 + skip
		if from > p.r.To {
			p.damaged(p.Scanned+1, p.r.To)
			p.Scanned = p.r.To
			return nil
		}
		before := p.Scanned
		full, err := l.scanLog(db, p, from, &seen)
		switch {
		case err == nil && !full && p.Scanned < p.r.To: // the last ones are missing
			p.damaged(p.Scanned+1, p.r.To)
			p.Scanned = p.r.To
			return nil
		case err == nil:
			return nil
		case !pebble.IsCorruptionError(err):
			return err
		case p.Scanned > before:
			skip = 1
		default:
			skip = max(1, 2*skip)
		}
	}
}

// scanLog adds events from an offset on until the page is full, the range ends, or the database fails.
func (l *log) scanLog(db *pebble.DB, p *page, from uint64, seen *int) (full bool, err error) {
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, from), UpperBound: offsetKey(kindLog, l.id, p.r.To+1),
	})
	if err != nil {
		return false, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		offset := keyOffset(it.Key())
		raw, err := it.ValueAndErr()
		if err != nil {
			return false, err
		}
		if *seen == p.r.MaxScan {
			return true, nil
		}
		*seen++
		if offset > p.Scanned+1 {
			p.damaged(p.Scanned+1, offset-1)
			p.Scanned = offset - 1
		}
		if !p.add(offset, raw) {
			return true, nil
		}
	}
	return false, it.Error()
}

// readTopic reads one topic through the index. Its cost follows that topic's events and the number of buckets.
func (l *log) readTopic(db *pebble.DB, p *page, n topic.Name) error {
	newest, err := getOffset(db, topicKey(l.id, n.String()))
	if err != nil {
		return err
	}
	if to := min(p.r.To, newest); to > p.r.After {
		if full, err := l.readIndexed(db, p, n, to); err != nil || full {
			return err
		}
	}
	p.Scanned = p.r.To
	return nil
}

func (l *log) readIndexed(db *pebble.DB, p *page, n topic.Name, to uint64) (full bool, err error) {
	events, err := db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, p.r.After+1), UpperBound: offsetKey(kindLog, l.id, to+1),
	})
	if err != nil {
		return false, err
	}
	defer events.Close()
	key := make([]byte, 0, logKeySize)
	err = l.eachOffset(db, n, p.r.After+1, to, func(offset uint64) (bool, error) {
		key = appendOffsetKey(key[:0], kindLog, l.id, offset)
		if !events.SeekGE(key) && events.Error() != nil {
			return false, events.Error()
		}
		var raw []byte
		if events.Valid() && keyOffset(events.Key()) == offset {
			var err error
			if raw, err = events.ValueAndErr(); err != nil {
				return false, err
			}
		}
		full = !p.add(offset, raw)
		return !full, nil
	})
	return full, err
}

// ReadAt implements engine.Log.
func (l *log) ReadAt(ctx context.Context, offsets []uint64, maxBytes int) (engine.Page, error) {
	db, s, err := l.view(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	if !s.History {
		return engine.Page{}, engine.ErrNoHistory
	}
	defer l.leave()
	p := newPage(engine.ReadRequest{MaxBytes: maxBytes, MaxEvents: max(1, len(offsets))})
	for _, offset := range offsets {
		if err := ctx.Err(); err != nil {
			return engine.Page{}, err
		}
		full, err := l.readOne(db, p, offset, offset >= s.Oldest && offset <= s.Head)
		if err != nil {
			return engine.Page{}, readError(err)
		}
		if full {
			break
		}
	}
	return p.Page, nil
}

func (l *log) readOne(db *pebble.DB, p *page, offset uint64, retained bool) (full bool, err error) {
	raw, closer, err := db.Get(offsetKey(kindLog, l.id, offset))
	if errors.Is(err, pebble.ErrNotFound) || err == nil && !retained || err != nil && pebble.IsCorruptionError(err) {
		p.add(offset, nil)
	} else if err != nil {
		return false, err
	} else {
		full = !p.add(offset, raw)
	}
	if closer != nil {
		err = closer.Close()
	} else {
		err = nil
	}
	return full, err
}

// BeforeTime implements engine.Log: a search, since timestamps never fall.
func (l *log) BeforeTime(ctx context.Context, t int64) (uint64, error) {
	db, s, err := l.view(ctx)
	if err != nil || !s.History {
		return s.Head, err
	}
	defer l.leave()
	m := marks{l: l, db: db, head: s.Head}
	for low, high := s.Oldest, s.Head+1; ; { // the answer + 1 lies in low..high
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if low == high {
			return low - 1, nil
		}
		middle := low + (high-low)/2
		k, err := m.find(middle)
		switch {
		case err != nil:
			return 0, readError(err)
		case k.time < t:
			low = middle + 1
		default:
			high = middle
		}
	}
}
