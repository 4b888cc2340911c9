package hub

import (
	"sort"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// Feed is the window of one followed pattern. A subscriber is a Cursor into it. Safe for concurrent use.
type Feed struct {
	// Fixed after Open.
	pattern topic.Pattern
	ns      *namespace

	mu      sync.Mutex
	w       window
	latest  *latest // while somebody conflates
	broken  uint64  // times that the numbering was broken by damage in the log
	ahead   []*Cursor
	waiters []*Waiter
	err     error // the feed is over

	// Guarded by ns.mu.
	refs      int
	conflated int       // of refs, those that keep latest
	idle      time.Time // since when refs is 0
	dirty     bool      // changed by the page being distributed
}

// Cursor is where a subscriber stands in a feed, once Join has placed it: at the number of the next element it takes. It belongs to
// one subscriber; the feed alone changes it but for Move.
type Cursor struct {
	next   uint64
	broken uint64 // Feed.broken when it joined
	// ahead, if not 0: the cursor stands at the first element above this offset, which the hub has not distributed yet, so that its number
	// is not known. Only then the feed knows the cursor.
	ahead uint64
	at    int // index in Feed.ahead + 1
}

// Waiter is how a subscriber learns that a feed it has read to its end has more, or is over. Wake is called at most once per
// arming, without any lock of the hub held.
type Waiter struct {
	Wake func()
	at   int // index in Feed.waiters + 1; 0: not armed
}

// Run is what Take adds elements to: slices of shared memory that must not be changed.
type Run struct {
	Slices [][]byte
	// Blocks are what Slices lie in. Whoever holds the run drops them when it needs the slices no longer.
	Blocks []*budget.Block
	Bytes  int
	Events int
	// Passed is how many elements were passed over because a newer one of their key is still to come, or is in the run.
	Passed uint64
	Next   uint64 // cursor behind the run
	Head   uint64 // the number the feed's next element will get
	Last   uint64 // offset of its last event; 0 if it is empty
	// Oldest is the timestamp of its first event, in Unix milliseconds; 0 where that is not known.
	Oldest int64
	// Lost: the elements at the cursor are not held any more; there is nothing to take.
	Lost bool
	// Damaged, with Lost: the log is damaged there, so nobody knows how many there were. The log says so to whoever reads it.
	Damaged bool
}

func (r *Run) hold(b *budget.Block) {
	if b != nil {
		b.Hold()
		r.Blocks = append(r.Blocks, b)
	}
}

// Limits bound what Take adds to a Run. At least one element is taken if there is one and Events is not 0.
type Limits struct {
	Bytes  int
	Events uint64
	Slices int
	Until  uint64 // TakeLatest: only elements below this number; 0: all
}

// Join places the cursor at the first element above seen. It fails if the window does not reach back to seen: then the log
// must be read further.
func (f *Feed) Join(c *Cursor, seen uint64) bool {
	// Elements are added before the position moves over them.
	f.mu.Lock()
	defer f.mu.Unlock()
	if seen < f.w.floor || f.err != nil {
		return false
	}
	f.leaveLocked(c)
	c.next, c.broken = f.w.above(seen), f.broken
	if c.next == f.w.next && seen > f.ns.position.Load() {
		c.ahead = seen
		f.ahead = append(f.ahead, c)
		c.at = len(f.ahead)
	}
	return true
}

// Leave takes back a waiter and forgets a cursor.
func (f *Feed) Leave(c *Cursor, w *Waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaveLocked(c)
	if w.at != 0 {
		last := f.waiters[len(f.waiters)-1]
		f.waiters[w.at-1], last.at = last, w.at
		f.waiters[len(f.waiters)-1] = nil
		f.waiters = f.waiters[:len(f.waiters)-1]
		w.at = 0
	}
}

func (f *Feed) leaveLocked(c *Cursor) {
	if c.at != 0 {
		last := f.ahead[len(f.ahead)-1]
		f.ahead[c.at-1], last.at = last, c.at
		f.ahead[len(f.ahead)-1] = nil
		f.ahead = f.ahead[:len(f.ahead)-1]
		c.at, c.ahead = 0, 0
	}
}

// Move places the cursor behind a run of at least one element: at its Next.
func (c *Cursor) Move(next uint64) { c.next = next }

// Take cuts the next elements from the cursor on and adds them to r. If it takes all there are, w is armed. An error means that the feed
// is over: its log was reopened or closed, or engine.ErrDeleted.
func (f *Feed) Take(c *Cursor, lim Limits, w *Waiter, r *Run) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ok, err := f.readyLocked(c, w, r); !ok {
		return err
	}
	if c.next < f.w.first {
		r.Lost = true
		return nil
	}
	f.takeLocked(lim, r)
	if r.Next == r.Head {
		f.armLocked(w)
	}
	return nil
}

// takeLocked takes from the window, which holds the element at r.Next.
func (f *Feed) takeLocked(lim Limits, r *Run) {
	for i := f.w.segment(r.Next); i < len(f.w.segs) && len(r.Slices) < lim.Slices && (r.Events == 0 || r.Bytes < lim.Bytes) && lim.Events > 0; i++ {
		s := f.w.segs[i]
		from := int(r.Next - s.first)
		room := lim.Bytes - r.Bytes
		base := 0
		if from > 0 {
			base = int(s.ends[from-1])
		}
		to := len(s.ends)
		if int(s.ends[to-1])-base > room {
			to = from + sort.Search(to-from, func(j int) bool { return int(s.ends[from+j])-base > room })
		}
		to = min(to, from+int(min(lim.Events, uint64(len(s.ends)))))
		if to == from {
			if r.Events > 0 {
				break
			}
			to = from + 1
		}
		b := s.bytes(from, to)
		if r.Events == 0 {
			r.Oldest = s.times[from]
		}
		r.Slices = append(r.Slices, b)
		r.hold(s.block)
		r.Bytes += len(b)
		r.Events += to - from
		r.Next += uint64(to - from)
		r.Last = s.offsets[to-1]
		lim.Events -= uint64(to - from)
		if to < len(s.ends) {
			break // the rest does not fit
		}
	}
}

// TakeLatest is Take for a subscriber that conflates: it takes only the newest element of each key, in order, and counts
// those it passed over. Whoever calls it must have opened the feed as conflating.
func (f *Feed) TakeLatest(c *Cursor, lim Limits, w *Waiter, r *Run) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ok, err := f.readyLocked(c, w, r); !ok {
		return err
	}
	switch {
	case c.next >= f.latest.first:
		if f.latest.take(r, c.next, lim) {
			r.Next = f.w.next
		}
		r.Passed = r.Next - c.next - uint64(r.Events)
	case c.next >= f.w.first: // some key had to be forgotten, but the window reaches farther back
		if lim.Until > 0 {
			lim.Events = min(lim.Events, lim.Until-min(c.next, lim.Until))
		}
		f.takeLocked(lim, r)
	default:
		r.Lost = true
	}
	if r.Next == r.Head {
		f.armLocked(w)
	}
	return nil
}

// readyLocked says whether there is something to take from the cursor on, and prepares r for it.
func (f *Feed) readyLocked(c *Cursor, w *Waiter, r *Run) (bool, error) {
	switch {
	case f.err != nil:
		return false, f.err
	case c.broken != f.broken:
		r.Lost, r.Damaged = true, true
		return false, nil
	case c.ahead != 0 || c.next == f.w.next:
		f.armLocked(w)
		return false, nil
	}
	r.Next, r.Head = c.next, f.w.next
	return true, nil
}

func (f *Feed) armLocked(w *Waiter) {
	if w.at == 0 {
		f.waiters = append(f.waiters, w)
		w.at = len(f.waiters)
	}
}

// Lag is how many elements lie between the cursor and the head of the feed, those that have left the window included, and the
// timestamp of the oldest of them that is held, in Unix milliseconds.
func (f *Feed) Lag(c *Cursor) (events uint64, oldest int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ahead != 0 || c.broken != f.broken {
		return 0, 0
	}
	if n := max(c.next, f.w.first); n < f.w.next {
		s := f.w.segs[f.w.segment(n)]
		oldest = s.times[n-s.first]
	}
	return f.w.next - c.next, oldest
}

// Skip moves a cursor forward so that at most keep elements lie before it, and none with a timestamp below since that the window
// holds. It says how many elements were skipped and the offset of the last of them.
func (f *Feed) Skip(c *Cursor, keep uint64, since int64) (skipped, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ahead != 0 || c.broken != f.broken {
		return 0, 0
	}
	next := max(c.next, f.w.first)
	if f.w.next > keep {
		next = max(next, f.w.next-keep)
	}
	next = max(next, f.w.since(since))
	switch {
	case next == c.next:
		return 0, 0
	case next == f.w.first:
		last = f.w.floor
	default:
		last = f.w.offset(next - 1)
	}
	skipped = next - c.next
	c.next = next
	return skipped, last
}

// SkipLost moves a cursor whose elements TakeLatest found lost to the first that are held.
func (f *Feed) SkipLost(c *Cursor) (skipped, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.ahead != 0 || c.broken != f.broken {
		return 0, 0
	}
	next, last := f.latest.first, f.latest.lost
	if f.w.first < next {
		next, last = f.w.first, f.w.floor
	}
	if next <= c.next {
		return 0, 0
	}
	skipped = next - c.next
	c.next = next
	return skipped, last
}

// Quiet returns the namespace's position if nothing lies between the cursor and the head of the feed: everything that matches
// up to there was taken.
func (f *Feed) Quiet(c *Cursor) (position uint64, ok bool) {
	// Elements are added before the position moves over them, so it must be read first.
	position = f.ns.position.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	return position, f.err == nil && c.broken == f.broken && (c.ahead != 0 || c.next == f.w.next)
}

// add adds an element, and tells cursors that waited for it its number.
func (f *Feed) add(e *element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.ahead) - 1; i >= 0; i-- {
		if c := f.ahead[i]; e.event.Offset > c.ahead {
			f.leaveLocked(c)
			c.next = f.w.next
		}
	}
	if f.latest != nil {
		shared := len(e.event.Wire) > shareAbove
		f.latest.add(f.w.next, e.event.Offset, e.conflationKey(), e.encode(), shared)
	}
	f.w.add(e)
}

// keepLatest begins to keep the newest of each key, with what the window holds.
func (f *Feed) keepLatest(most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latest = newLatest(f.w.budget, most)
	f.latest.first, f.latest.lost = f.w.first, f.w.floor
	for _, s := range f.w.segs {
		for i, offset := range s.offsets {
			b := s.bytes(i, i+1)
			event := wire.ElementEvent(b)
			name, err := wire.BodyTopic(event)
			if err != nil {
				continue // it was encoded by the broker: every event begins with its topic
			}
			f.latest.add(s.first+uint64(i), offset, KeyOf(string(name), event), b, len(event) > shareAbove)
		}
	}
}

func (f *Feed) forgetLatest() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.latest.close()
	f.latest = nil
}

// breakNumbers makes every subscriber read the log over a damaged stretch, where it is told what is missing.
func (f *Feed) breakNumbers(offset uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken++
	for len(f.ahead) > 0 {
		f.leaveLocked(f.ahead[0])
	}
	f.w.clear(offset)
	if f.latest != nil {
		f.latest.close()
		f.latest.first, f.latest.lost = f.w.next, offset
	}
}

// wakeable hands over all armed waiters.
func (f *Feed) wakeable(to []*Waiter) []*Waiter {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.waiters {
		w.at = 0
	}
	to = append(to, f.waiters...)
	clear(f.waiters)
	f.waiters = f.waiters[:0]
	return to
}

// end makes the feed useless: every Take from now on returns err.
func (f *Feed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.w.clear(f.w.floor)
	if f.latest != nil {
		f.latest.close()
	}
}

// Close gives the feed back; conflating as it was opened. It lingers for a while, for whoever comes next.
func (f *Feed) Close(conflating bool) {
	f.ns.mu.Lock()
	defer f.ns.mu.Unlock()
	f.refs--
	f.idle = time.Now()
	if conflating {
		if f.conflated--; f.conflated == 0 {
			f.forgetLatest()
		}
	}
}
