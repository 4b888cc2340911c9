package session

import (
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// maxCredit caps what a client can save up.
const maxCredit = 1 << 31

// Options describe a subscription whose names, policy and start were checked.
type Options struct {
	ID      uint32 // 0: the session numbers it
	Pattern topic.Pattern
	Policy  runnelv1.OverflowPolicy
	Credit  uint32 // 0: none
	MaxLag  uint64
	Feed    *hub.Feed // opened before the start was looked up
	Log     engine.Log
	State   engine.State // of the log, when the start was looked up
	Start   uint64       // everything up to this offset was seen
	// Snapshot, for last_event: offsets at or below Start to send first, ascending.
	Snapshot []uint64
	// Gap, if set, is told first: why events before the start cannot be had.
	Gap string
}

// subscription is a cursor: into its feed while it is live, into the log while it is behind. All fields are guarded by the
// session's mu.
type subscription struct {
	s *Session
	o Options

	live   bool
	cursor uint64     // live: the next element of the feed
	waiter hub.Waiter // live and at the head of the feed
	seen   uint64     // everything that matches up to here was delivered or covered by a notice
	told   uint64     // the position the client knows, by event, notice or bookmark

	snapshot []uint64 // still to read
	page     replay   // behind: what was read and not yet sent
	reading  bool     // the replayer has it
	behind   bool     // BEHIND was sent

	credit  uint64
	stalls  uint64 // s.stalls when the policy last looked
	starved bool   // credit was used up with events waiting
	queued  bool
	closed  bool
}

// move is what a frame in flight does to a subscription once it is sent.
type move struct {
	sub    *subscription
	run    hub.Run
	events int
}

func newSubscription(s *Session, o Options) *subscription {
	sub := &subscription{s: s, o: o, seen: o.Start, snapshot: o.Snapshot, credit: uint64(o.Credit), stalls: s.stalls}
	sub.waiter.Wake = sub.wake
	if len(sub.snapshot) == 0 {
		sub.cursor, sub.live = o.Feed.Join(sub.seen)
	}
	return sub
}

// wake is called by the feed when there is more.
func (sub *subscription) wake() {
	s := sub.s
	s.mu.Lock()
	sub.queueLocked()
	s.wake()
	s.mu.Unlock()
}

func (sub *subscription) queueLocked() {
	if !sub.queued && !sub.closed {
		sub.queued = true
		sub.s.queue = append(sub.s.queue, sub)
	}
}

// release gives back the feed, without the session's lock.
func (sub *subscription) release() {
	sub.o.Feed.Disarm(&sub.waiter)
	sub.o.Feed.Close()
}

// position is where the client may resume. During a snapshot that is not yet sent it is the snapshot's head, as promised in
// Subscribed; the SDK knows that it must have received the snapshot first.
func (sub *subscription) position() *runnelv1.Position {
	if !sub.o.State.History {
		return &runnelv1.Position{Epoch: sub.o.State.Epoch}
	}
	return &runnelv1.Position{Epoch: sub.o.State.Epoch, Offset: sub.seen}
}

// fill adds what the subscription may send to the frame. It reports false if that is nothing.
func (sub *subscription) fill(f *Frame, maxBytes int) (move, bool) {
	if sub.closed || sub.reading {
		return move{}, false
	}
	sub.actOnLag()
	if sub.s.err != nil {
		return move{}, false
	}
	lim := hub.Limits{Bytes: maxBytes, Events: maxCredit, Slices: MaxFrameSlices - len(f.Slices) - 2}
	if sub.o.Credit > 0 {
		if sub.credit == 0 {
			sub.starve()
			return move{}, false
		}
		lim.Events = sub.credit
	}
	m := move{sub: sub}
	if sub.live {
		run, err := sub.o.Feed.Take(sub.cursor, sub.seen, lim, &sub.waiter)
		if err != nil {
			sub.s.endLocked(ErrReopened)
			return move{}, false
		}
		if run.Lost {
			if !sub.overtaken() {
				return move{}, false
			}
			// The policy has moved the cursor into the window.
			sub.queueLocked()
			return move{}, false
		}
		m.run = run
	} else {
		m.run = sub.page.take(lim)
		if m.run.Events == 0 {
			sub.advance()
			return move{}, false
		}
	}
	if m.events = m.run.Events; m.events == 0 {
		sub.cursor = m.run.Next
		return move{}, false
	}
	header := wire.AppendDeliveryHeader(make([]byte, 0, wire.MaxDeliveryHeader), sub.o.ID, m.run.Bytes)
	f.Slices = append(append(f.Slices, header), m.run.Slices...)
	f.Bytes += len(header) + m.run.Bytes
	f.Events += m.events
	return m, true
}

// sent moves the cursor over what the transport has taken, and goes on.
func (sub *subscription) sent(m move) {
	if sub.closed {
		return
	}
	if sub.o.Credit > 0 {
		sub.credit -= uint64(m.events)
	}
	if sub.live {
		sub.cursor = m.run.Next
		sub.seen = max(sub.seen, m.run.Last)
		sub.told = sub.seen
	} else {
		sub.page.sent(m.run)
		if len(sub.snapshot) == 0 && !sub.page.snapshot {
			sub.seen = max(sub.seen, m.run.Last)
			sub.told = sub.seen
		}
	}
	sub.queueLocked()
}

// notice queues a notice about the subscription, in its place among the subscription's events.
func (sub *subscription) notice(n *runnelv1.Notice) {
	n.Subscription = sub.o.ID
	sub.s.controls = append(sub.s.controls, &runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: n}})
	sub.s.wake()
}
