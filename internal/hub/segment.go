package hub

import (
	"sort"

	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/wire"
)

const (
	minSegment = 1 << 10  // the first segment of a window; each next is twice as large
	maxSegment = 32 << 10 // up to this
	// Events above this size are encoded once and shared by all feeds instead of copied into each.
	shareAbove = 4 << 10
)

// segmentCost is what a segment with room for so many bytes is counted as: the bytes, and what is known of each element.
func segmentCost(room int) int64 { return int64(room + room/4 + 256) }

// segment is a stretch of encoded elements. Bytes below the published length never change, so they may be read, and handed to a
// transport, without a lock.
type segment struct {
	first   uint64 // number of the first element
	buf     []byte
	ends    []uint32 // end of each element in buf
	offsets []uint64 // of each element's event
	times   []int64  // of each element's event, Unix milliseconds
	block   *budget.Block
}

func (s *segment) last() uint64 { return s.offsets[len(s.offsets)-1] }

// bytes cuts elements i to below j.
func (s *segment) bytes(i, j int) []byte {
	start := uint32(0)
	if i > 0 {
		start = s.ends[i-1]
	}
	return s.buf[start:s.ends[j-1]:s.ends[j-1]]
}

// window is a bounded run of elements, numbered from 0 for the feed's whole life.
type window struct {
	budget *budget.Budget
	most   int // bytes

	segs  []*segment
	first uint64 // number of the oldest element held
	next  uint64 // number the next element gets
	bytes int
	floor uint64 // every matching event above this offset is held
}

// element is an event encoded once, and only if some feed wants it.
type element struct {
	event *engine.Event
	wire  []byte
	key   string // of the conflation, once asked for
}

func (e *element) size() int { return wire.ElementSize(len(e.event.Wire)) }

func (e *element) encode() []byte {
	if e.wire == nil {
		e.wire = wire.AppendElement(make([]byte, 0, e.size()), e.event.Wire)
	}
	return e.wire
}

// add appends an element. If there is no memory for it, the window forgets its oldest, at last itself: the element has a
// number all the same, and whoever needs it finds that it has left the window.
func (w *window) add(e *element) {
	size := e.size()
	s := w.room(e, size)
	number := w.next
	w.next++
	if s == nil {
		w.clear(e.event.Offset)
		return
	}
	if len(s.offsets) == 0 {
		s.first = number
	}
	if len(e.event.Wire) <= shareAbove {
		s.buf = wire.AppendElement(s.buf, e.event.Wire)
	}
	s.ends = append(s.ends, uint32(len(s.buf)))
	s.offsets = append(s.offsets, e.event.Offset)
	s.times = append(s.times, e.event.Timestamp)
	w.bytes += size
	for w.bytes > w.most && len(w.segs) > 1 {
		w.forget()
	}
}

// room is the segment that the element goes to; nil if there is no memory for one.
func (w *window) room(e *element, size int) *segment {
	shared := len(e.event.Wire) > shareAbove
	if n := len(w.segs); n > 0 && !shared {
		if s := w.segs[n-1]; cap(s.buf)-len(s.buf) >= size {
			return s
		}
	}
	room := size
	if !shared {
		room = max(size, w.capacity())
	}
	block, ok := w.budget.Block(budget.Windows, segmentCost(room))
	for !ok && len(w.segs) > 0 {
		w.forget()
		block, ok = w.budget.Block(budget.Windows, segmentCost(room))
	}
	if !ok {
		return nil
	}
	s := &segment{block: block}
	if shared {
		s.buf = e.encode()
	} else {
		s.buf = make([]byte, 0, room)
	}
	w.segs = append(w.segs, s)
	return s
}

func (w *window) capacity() int {
	if len(w.segs) == 0 {
		return minSegment
	}
	return min(max(2*cap(w.segs[len(w.segs)-1].buf), minSegment), maxSegment)
}

// forget drops the oldest segment.
func (w *window) forget() {
	s := w.segs[0]
	w.segs[0] = nil
	w.segs = w.segs[1:]
	w.floor = s.last()
	w.bytes -= len(s.buf)
	w.first = s.first + uint64(len(s.offsets))
	s.block.Drop()
}

// clear forgets all elements: the window begins anew above offset.
func (w *window) clear(offset uint64) {
	for len(w.segs) > 0 {
		w.forget()
	}
	w.first, w.floor = w.next, offset
}

// segment returns the index of the segment that holds element n.
func (w *window) segment(n uint64) int {
	return sort.Search(len(w.segs), func(i int) bool { return w.segs[i].first > n }) - 1
}

// above is the number of the first element whose event is above offset; next if there is none.
func (w *window) above(offset uint64) uint64 {
	i := sort.Search(len(w.segs), func(i int) bool { return w.segs[i].last() > offset })
	if i == len(w.segs) {
		return w.next
	}
	s := w.segs[i]
	return s.first + uint64(sort.Search(len(s.offsets), func(i int) bool { return s.offsets[i] > offset }))
}

// since is the number of the first element held whose timestamp is not below ms; next if there is none.
func (w *window) since(ms int64) uint64 {
	i := sort.Search(len(w.segs), func(i int) bool { return w.segs[i].times[len(w.segs[i].times)-1] >= ms })
	if i == len(w.segs) {
		return w.next
	}
	s := w.segs[i]
	return s.first + uint64(sort.Search(len(s.times), func(i int) bool { return s.times[i] >= ms }))
}

// offset is the offset of the event of element n, which is held.
func (w *window) offset(n uint64) uint64 {
	s := w.segs[w.segment(n)]
	return s.offsets[n-s.first]
}
