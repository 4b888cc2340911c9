package hub

import (
	"sort"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/topic"
)

// Feed is the window of one followed pattern. A subscriber is a cursor into it: the number of the next element. Safe for
// concurrent use.
type Feed struct {
	// Fixed after Open.
	pattern topic.Pattern
	ns      *namespace

	mu      sync.Mutex
	w       window
	waiters []*Waiter
	err     error // the feed is over

	// Guarded by ns.mu.
	refs  int
	idle  time.Time // since when refs is 0
	dirty bool      // changed by the page being distributed
}

// Waiter is how a subscriber learns that a feed it has read to its end has more, or is over. Wake is called at most once per
// arming, without any lock of the hub held.
type Waiter struct {
	Wake func()
	at   int // index in Feed.waiters + 1; 0: not armed
}

// Run is what Take returns: consecutive elements, as slices of shared memory that must not be changed.
type Run struct {
	Slices [][]byte
	Bytes  int
	Events int
	Next   uint64 // cursor behind the run
	Last   uint64 // offset of its last event; 0 if it is empty
	// Lost: the cursor has fallen out of the window; there is nothing to take.
	Lost bool
}

// Join turns a position into a cursor: the first element above seen. It fails if the window does not reach back to
// seen: then the log must be read further. Elements at or below seen may still come, if seen is above what the hub has
// distributed; Take skips them.
func (f *Feed) Join(seen uint64) (cursor uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seen < f.w.floor || f.err != nil {
		return 0, false
	}
	return f.w.above(seen), true
}

// Limits bound a Run. At least one element is taken if there is one and Events is not 0.
type Limits struct {
	Bytes  int
	Events uint64
	Slices int
}

// Take cuts the next elements above seen from the cursor on. If there are none, w is armed. An error means that the feed is
// over: its log was reopened or closed.
func (f *Feed) Take(cursor, seen uint64, lim Limits, w *Waiter) (Run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.err != nil:
		return Run{}, f.err
	case cursor < f.w.first:
		return Run{Next: cursor, Lost: true}, nil
	}
	for cursor < f.w.next && f.w.offset(cursor) <= seen {
		cursor++
	}
	r := Run{Next: cursor}
	if cursor == f.w.next {
		f.armLocked(w)
		return r, nil
	}
	for i := f.w.segment(cursor); i < len(f.w.segs) && len(r.Slices) < lim.Slices && r.Bytes < lim.Bytes && lim.Events > 0; i++ {
		s := f.w.segs[i]
		from := int(r.Next - s.first)
		room := lim.Bytes - r.Bytes
		base := 0
		if from > 0 {
			base = int(s.ends[from-1])
		}
		to := from + sort.Search(len(s.ends)-from, func(j int) bool { return int(s.ends[from+j])-base > room })
		to = min(to, from+int(min(lim.Events, uint64(len(s.ends)))))
		if to == from {
			if r.Events > 0 {
				break
			}
			to = from + 1
		}
		b := s.bytes(from, to)
		r.Slices = append(r.Slices, b)
		r.Bytes += len(b)
		r.Events += to - from
		r.Next += uint64(to - from)
		r.Last = s.offsets[to-1]
		lim.Events -= uint64(to - from)
		if to < len(s.ends) {
			break // the rest does not fit
		}
	}
	return r, nil
}

// Behind is how many elements lie between the cursor and the head of the feed, those that have left the window included.
func (f *Feed) Behind(cursor uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.w.next - cursor
}

// Skip moves a cursor forward so that at most keep elements lie before it, as far as the window allows, and says how many
// elements were skipped and the offset of the last of them.
func (f *Feed) Skip(cursor, keep uint64) (next, skipped, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next = max(cursor, f.w.first)
	if f.w.next > keep {
		next = max(next, f.w.next-keep)
	}
	switch {
	case next == cursor:
		return cursor, 0, 0
	case next == f.w.first:
		last = f.w.floor
	default:
		last = f.w.offset(next - 1)
	}
	return next, next - cursor, last
}

// Quiet returns the namespace's position if nothing lies between the cursor and the head of the feed: everything that matches
// up to there was taken.
func (f *Feed) Quiet(cursor uint64) (position uint64, ok bool) {
	// Elements are added before the position moves over them, so it must be read first.
	position = f.ns.position.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	return position, cursor == f.w.next && f.err == nil
}

// Disarm takes back an armed waiter.
func (f *Feed) Disarm(w *Waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.at == 0 {
		return
	}
	last := f.waiters[len(f.waiters)-1]
	f.waiters[w.at-1], last.at = last, w.at
	f.waiters[len(f.waiters)-1] = nil
	f.waiters = f.waiters[:len(f.waiters)-1]
	w.at = 0
}

func (f *Feed) armLocked(w *Waiter) {
	if w.at == 0 {
		f.waiters = append(f.waiters, w)
		w.at = len(f.waiters)
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

// end makes the feed's window useless: every Take from now on returns err.
func (f *Feed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// Close gives the feed back. It lingers for a while, for whoever comes next.
func (f *Feed) Close() {
	f.ns.mu.Lock()
	defer f.ns.mu.Unlock()
	f.refs--
	f.idle = time.Now()
}
