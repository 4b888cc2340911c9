package hub

import (
	"sort"

	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/wire"
)

// latest holds the newest element of each key, in the order of their numbers, in segments of its own, so that the newest of a
// quiet key stays when it has left the window. It is a log with compaction: a newer element of a key kills the older one,
// and a segment that is half dead is rewritten, so that adding costs a constant number of copies, taken over time.
type latest struct {
	budget *budget.Budget
	most   int // bytes, with what is known of each key

	keys  map[string]*newest
	segs  []*keptSegment // ascending; none is empty of living elements but perhaps the last
	bytes int
	// first: every key's newest element with this number or a higher one is held. lost is the offset of the one below it.
	first, lost uint64
}

// newest says where a key's newest element is.
type newest struct {
	seg *keptSegment
	at  int // in seg.elements
}

type keptSegment struct {
	buf      []byte // bytes below its length never change
	elements []kept
	live     int // elements that are some key's newest
	dead     int // bytes of the others
	block    *budget.Block
}

type kept struct {
	number, offset uint64
	start, end     uint32
	key            string // "" once it is superseded
}

func (s *keptSegment) last() uint64 { return s.elements[len(s.elements)-1].number }

func newLatest(b *budget.Budget, most int) *latest {
	return &latest{budget: b, most: most, keys: map[string]*newest{}}
}

// keyCost is what a key is counted as: its text twice, and its places in map and segment.
func keyCost(key string) int64 { return int64(2*len(key) + 160) }

// add makes an element the newest of its key. bytes is the encoded element; shared says that it may be kept as it is.
func (l *latest) add(number, offset uint64, key string, bytes []byte, shared bool) {
	n := l.keys[key]
	if n != nil {
		l.kill(n)
	} else {
		for !l.budget.Take(budget.Windows, keyCost(key)) {
			if !l.evict() {
				l.first, l.lost = number+1, offset
				return
			}
		}
		n = &newest{}
		l.keys[key] = n
		l.bytes += int(keyCost(key))
	}
	s := l.room(len(bytes), shared)
	if s == nil {
		l.drop(key)
		l.first, l.lost = number+1, offset
		return
	}
	start := uint32(len(s.buf))
	if shared {
		s.buf, start = bytes, 0
	} else {
		s.buf = append(s.buf, bytes...)
	}
	n.seg, n.at = s, len(s.elements)
	s.elements = append(s.elements, kept{number, offset, start, uint32(len(s.buf)), key})
	s.live++
	for l.bytes > l.most && len(l.segs) > 1 {
		l.evict()
	}
}

// room is the segment for an element of that size; nil if there is no memory for one.
func (l *latest) room(size int, shared bool) *keptSegment {
	if n := len(l.segs); n > 0 && !shared {
		if s := l.segs[n-1]; cap(s.buf)-len(s.buf) >= size {
			return s
		}
	}
	capacity := size
	if !shared {
		capacity = minSegment
		if n := len(l.segs); n > 0 {
			capacity = min(2*cap(l.segs[n-1].buf), maxSegment)
		}
		capacity = max(capacity, minSegment, size)
	}
	s := l.segment(capacity, shared)
	for s == nil && l.evict() {
		s = l.segment(capacity, shared)
	}
	if s != nil {
		l.tidyLast()
		l.segs = append(l.segs, s)
	}
	return s
}

// tidyLast does for the last segment, which gets no more, what kill has left undone.
func (l *latest) tidyLast() {
	i := len(l.segs) - 1
	switch {
	case i < 0:
	case l.segs[i].live == 0:
		l.remove(i)
	case l.segs[i].dead > cap(l.segs[i].buf)/2:
		l.rewrite(i)
	}
}

func (l *latest) segment(capacity int, shared bool) *keptSegment {
	block, ok := l.budget.Block(budget.Windows, segmentCost(capacity))
	if !ok {
		return nil
	}
	s := &keptSegment{block: block}
	if !shared {
		s.buf = make([]byte, 0, capacity)
	}
	l.bytes += capacity
	return s
}

// kill takes the place of a key's newest element from it.
func (l *latest) kill(n *newest) {
	s, e := n.seg, &n.seg.elements[n.at]
	e.key = ""
	s.live--
	s.dead += int(e.end - e.start)
	if s == l.segs[len(l.segs)-1] {
		return // more comes to it; it is looked at when it is full and loses the next
	}
	switch i := l.index(e.number); {
	case s.live == 0:
		l.remove(i)
	case s.dead > cap(s.buf)/2:
		l.rewrite(i)
	}
}

// rewrite copies what lives in segment i, and in the one before it if both fit one, to a new segment. Without memory for that
// nothing changes: the next loss is the next chance.
func (l *latest) rewrite(i int) {
	from := i
	size := len(l.segs[i].buf) - l.segs[i].dead
	if i > 0 {
		if before := l.segs[i-1]; len(before.buf)-before.dead+size <= maxSegment/2 {
			from, size = i-1, size+len(before.buf)-before.dead
		}
	}
	to := l.segment(size, false)
	if to == nil {
		return
	}
	for _, s := range l.segs[from : i+1] {
		for _, e := range s.elements {
			if e.key == "" {
				continue
			}
			n := l.keys[e.key]
			n.seg, n.at = to, len(to.elements)
			b := s.buf[e.start:e.end]
			e.start = uint32(len(to.buf))
			to.buf = append(to.buf, b...)
			e.end = uint32(len(to.buf))
			to.elements = append(to.elements, e)
			to.live++
		}
	}
	l.segs[i] = l.release(l.segs[i], to)
	if from < i {
		l.remove(from)
	}
}

func (l *latest) release(s, by *keptSegment) *keptSegment {
	l.bytes -= cap(s.buf)
	s.block.Drop()
	return by
}

func (l *latest) remove(i int) {
	l.release(l.segs[i], nil)
	copy(l.segs[i:], l.segs[i+1:])
	l.segs[len(l.segs)-1] = nil
	l.segs = l.segs[:len(l.segs)-1]
}

// evict forgets the oldest keys, one segment of them; false if there is none.
func (l *latest) evict() bool {
	if len(l.segs) == 0 {
		return false
	}
	for _, e := range l.segs[0].elements {
		if e.key != "" {
			l.drop(e.key)
			l.first, l.lost = e.number+1, e.offset
		}
	}
	l.remove(0)
	return true
}

func (l *latest) drop(key string) {
	delete(l.keys, key)
	l.bytes -= int(keyCost(key))
	l.budget.Give(budget.Windows, keyCost(key))
}

// close gives everything back.
func (l *latest) close() {
	for l.evict() {
	}
}

// index is the segment that holds element number, or would; len(segs) if all end below.
func (l *latest) index(number uint64) int {
	return sort.Search(len(l.segs), func(i int) bool { return l.segs[i].last() >= number })
}

// take adds elements from number on to the run, as far as the limits allow; done says that no more are held.
func (l *latest) take(r *Run, number uint64, lim Limits) (done bool) {
	for i := l.index(number); i < len(l.segs); i++ {
		s := l.segs[i]
		open := false // the run's last slice ends where the next element of s begins
		at := sort.Search(len(s.elements), func(j int) bool { return s.elements[j].number >= number })
		for _, e := range s.elements[at:] {
			if e.key == "" {
				open = false
				continue
			}
			if lim.Until > 0 && e.number >= lim.Until {
				return false
			}
			size := int(e.end - e.start)
			if r.Events > 0 && (r.Bytes+size > lim.Bytes || uint64(r.Events) >= lim.Events || !open && len(r.Slices) >= lim.Slices) {
				return false
			}
			if open {
				last := &r.Slices[len(r.Slices)-1]
				*last = s.buf[int(e.start)-len(*last) : e.end : e.end]
			} else {
				r.Slices = append(r.Slices, s.buf[e.start:e.end:e.end])
				r.hold(s.block)
				open = true
			}
			r.Bytes += size
			r.Events++
			r.Next, r.Last = e.number+1, e.offset
		}
	}
	return true
}

// conflationKey is what an element supersedes older ones of: topic and key, or the topic itself.
func (e *element) conflationKey() string {
	if e.key == "" {
		e.key = KeyOf(e.event.Topic.String(), e.event.Wire)
	}
	return e.key
}

// KeyOf is what conflation goes by: topic and key, joined by a byte that no topic has, or the topic itself if the key is empty.
func KeyOf(topic string, event []byte) string {
	if key := wire.EventKey(event); len(key) > 0 {
		return topic + "\x00" + string(key)
	}
	return topic
}
