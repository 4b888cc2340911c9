package session

import (
	"container/heap"
	"time"

	"github.com/runnelhq/runnel/internal/hub"
)

// pace spreads the batches of a conflating subscription: one begins at most every interval. What is read from the log goes out as
// it comes, for however long: until it is live again, that is one batch.
type pace struct {
	end   uint64    // the batch under way ends before this element; 0: none is under way
	after time.Time // the next may begin then
	at    int       // index in the session's heap; -1: not waiting
}

// pacedLocked says whether the subscription must wait for its next interval, and makes the session's timer wake it then.
func (sub *subscription) pacedLocked(now time.Time) bool {
	s, p := sub.s, &sub.pace
	if sub.o.Interval == 0 || !sub.live || p.end != 0 || !now.Before(p.after) || s.finishing {
		return false
	}
	if p.at < 0 {
		heap.Push(&s.paced, sub)
		s.lookLocked(p.after)
	}
	return true
}

// going notes that a run goes out. What is left of a batch that was held up uses an interval too.
func (sub *subscription) going(run *hub.Run, now time.Time) {
	p := &sub.pace
	if sub.o.Interval == 0 {
		return
	}
	if !now.Before(p.after) {
		p.after = now.Add(sub.o.Interval)
	}
	if sub.live && p.end == 0 {
		p.end = run.Head
	}
}

// sent notes that elements below next have gone out.
func (p *pace) sent(next uint64) {
	if next >= p.end {
		p.end = 0
	}
}

// pacing is a heap of the subscriptions that wait for their next interval, soonest first.
type pacing []*subscription

func (h pacing) Len() int           { return len(h) }
func (h pacing) Less(i, j int) bool { return h[i].pace.after.Before(h[j].pace.after) }
func (h pacing) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pace.at, h[j].pace.at = i, j
}

// Push implements heap.Interface.
func (h *pacing) Push(x any) {
	sub := x.(*subscription)
	sub.pace.at = len(*h)
	*h = append(*h, sub)
}

// Pop implements heap.Interface.
func (h *pacing) Pop() any {
	last := len(*h) - 1
	sub := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	sub.pace.at = -1
	return sub
}

func (h *pacing) remove(sub *subscription) {
	if sub.pace.at >= 0 && sub.pace.at < len(*h) {
		heap.Remove(h, sub.pace.at)
	}
}
