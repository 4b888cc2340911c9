package hub

import (
	"sort"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/wire"
)

const (
	minSegment = 1 << 10  // the first segment of a window; each next is twice as large
	maxSegment = 32 << 10 // up to this
	// Events above this size are encoded once and shared by all feeds instead of copied into each.
	shareAbove = 4 << 10
)

// segment is a stretch of encoded elements. Bytes below the published length never change, so they may be read, and handed to a
// transport, without a lock.
type segment struct {
	first   uint64 // number of the first element
	buf     []byte
	ends    []uint32 // end of each element in buf
	offsets []uint64 // of each element's event
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
}

func (e *element) encode() []byte {
	if e.wire == nil {
		e.wire = wire.AppendElement(make([]byte, 0, wire.ElementSize(len(e.event.Wire))), e.event.Wire)
	}
	return e.wire
}

func (w *window) add(e *element) {
	size := wire.ElementSize(len(e.event.Wire))
	var s *segment
	if len(e.event.Wire) > shareAbove {
		s = w.grow(&segment{buf: e.encode()})
	} else {
		if n := len(w.segs); n > 0 {
			s = w.segs[n-1]
		}
		if s == nil || cap(s.buf)-len(s.buf) < size {
			s = w.grow(&segment{buf: make([]byte, 0, max(size, w.capacity()))})
		}
		s.buf = wire.AppendElement(s.buf, e.event.Wire)
	}
	s.ends = append(s.ends, uint32(len(s.buf)))
	s.offsets = append(s.offsets, e.event.Offset)
	w.next++
	w.bytes += size
}

func (w *window) capacity() int {
	if len(w.segs) == 0 {
		return minSegment
	}
	return min(max(2*cap(w.segs[len(w.segs)-1].buf), minSegment), maxSegment)
}

func (w *window) grow(s *segment) *segment {
	s.first = w.next
	w.segs = append(w.segs, s)
	return s
}

// shrink drops the oldest segments while there are more than most bytes, and keeps the newest.
func (w *window) shrink(most int) {
	for w.bytes > most && len(w.segs) > 1 {
		s := w.segs[0]
		w.floor = s.last()
		w.bytes -= len(s.buf)
		w.first = w.segs[1].first
		w.segs[0] = nil
		w.segs = w.segs[1:]
	}
}

// clear forgets all elements: the window begins anew above offset.
func (w *window) clear(offset uint64) {
	w.segs, w.bytes, w.first, w.floor = nil, 0, w.next, offset
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

// offset is the offset of the event of element n, which is held.
func (w *window) offset(n uint64) uint64 {
	s := w.segs[w.segment(n)]
	return s.offsets[n-s.first]
}
