package session

import (
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// superseded is why CONFLATE passes over an event.
const superseded = "superseded by newer events of their keys"

// maxCredit caps what a client can save up.
const maxCredit = 1 << 31

// Options describe a subscription whose names, policy and start were checked.
type Options struct {
	ID       uint32 // 0: the session numbers it
	Pattern  topic.Pattern
	Policy   runnelv1.OverflowPolicy
	Credit   uint32        // 0: none
	MaxLag   uint64        // DROP_OLDEST, DISCONNECT: events behind the head
	MaxAge   time.Duration // DROP_OLDEST, DISCONNECT: of the oldest event not sent; 0: no limit
	Interval time.Duration // CONFLATE: least time between the beginnings of two batches
	Feed     *hub.Feed     // opened before the start was looked up, as conflating if Policy is CONFLATE
	Log      engine.Log
	State    engine.State // of the log, when the start was looked up
	Start    uint64       // everything up to this offset was seen
	// Snapshot, for last_event: offsets at or below Start to send first, ascending.
	Snapshot []uint64
	// Gap, if set, is told first: why events before the start cannot be had.
	Gap string
	// Release, if set, is called once when the subscription is over, with no lock held.
	Release func()
}

func (o *Options) conflates() bool {
	return o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE
}

func (o *Options) cost() int64 { return subscriptionCost + 8*int64(len(o.Snapshot)) }

// subscription is a cursor: into its feed while it is live, into the log while it is behind. All fields are guarded by the
// session's mu.
type subscription struct {
	s *Session
	o Options

	live   bool
	cursor hub.Cursor // live: the next element of the feed
	waiter hub.Waiter // live and at the head of the feed
	seen   uint64     // everything that matches up to here was delivered or covered by a notice
	told   uint64     // the position the client knows, by event, notice or bookmark

	snapshot []uint64 // still to read
	page     replay   // behind: what was read and not yet sent
	reading  bool     // the replayer has it
	behind   bool     // BEHIND was sent

	credit   uint64
	pauses   uint64    // s.pauses when it last looked
	held     time.Time // since when credit or stream was used up before all was sent; zero: it keeps up
	dry      time.Time // since when credit is used up; zero: there is some, or nothing more to send
	pace     pace
	tally    tally
	notified *runnelv1.Notice // the last notice queued
	flush    uint64           // s.flushes then

	queued bool
	flying bool // a frame with its events is with the writer: its cursor must stay
	closed bool
}

// move is what a frame in flight does to a subscription once it is sent.
type move struct {
	sub    *subscription
	events int
	next   uint64 // cursor, or element of the page
	last   uint64 // offset
	live   bool
	all    bool // the feed had no more
}

func newSubscription(s *Session, o Options) *subscription {
	sub := &subscription{s: s, o: o, seen: o.Start, snapshot: o.Snapshot, credit: uint64(o.Credit), pauses: s.pauses}
	sub.waiter.Wake = sub.wake
	sub.pace.at = -1
	if len(sub.snapshot) == 0 {
		sub.live = o.Feed.Join(&sub.cursor, sub.seen)
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

func (sub *subscription) closeLocked() {
	sub.closed = true
	sub.unhold()
	sub.s.paced.remove(sub)
	sub.page.drop()
	sub.setBehind(false)
	gone := &sub.s.gone
	gone.delivered += sub.tally.delivered
	gone.dropped += sub.tally.dropped
	gone.conflated += sub.tally.conflated
	gone.gaps += sub.tally.gaps
	sub.s.cfg.Meter.subscriptions(-1)
}

// expelLocked ends the subscription with a status, which is the client's answer. The caller releases it.
func (sub *subscription) expelLocked(st *status.Status) {
	s := sub.s
	delete(s.subs, sub.o.ID)
	sub.closeLocked()
	s.controls = append(s.controls, &runnelv1.Control{Control: &runnelv1.Control_Unsubscribed{
		Unsubscribed: &runnelv1.Unsubscribed{Subscription: sub.o.ID, Status: st},
	}})
}

// brokenLocked ends what cannot go on because its log is over. After a reopening that is the session: its client resumes all it has, and its
// positions say what that means. Where the namespace was deleted no position is left, and nobody else is concerned.
func (sub *subscription) brokenLocked(err error) {
	s := sub.s
	if !errors.Is(err, engine.ErrDeleted) {
		s.endLocked(ErrReopened)
		return
	}
	sub.expelLocked(s.cfg.Status(&engine.EpochChangedError{}))
	s.over = append(s.over, sub)
	s.wake()
}

// setBehind notes whether the client was told that the subscription reads the log.
func (sub *subscription) setBehind(behind bool) {
	if behind != sub.behind {
		sub.behind = behind
		n := int64(-1)
		if behind {
			n = 1
		}
		sub.s.cfg.Meter.behind(n)
	}
}

// release gives back the feed and the memory, without the session's lock.
func (sub *subscription) release() {
	sub.o.Feed.Leave(&sub.cursor, &sub.waiter)
	sub.o.Feed.Close(sub.o.conflates())
	sub.s.cfg.Budget.Give(budget.Sessions, sub.o.cost())
	if sub.o.Release != nil {
		sub.o.Release()
	}
}

// position is where the client may resume. During a snapshot that is not yet sent it is the snapshot's head, as promised in
// Subscribed; the SDK knows that it must have received the snapshot first.
func (sub *subscription) position() *runnelv1.Position {
	if !sub.o.State.History {
		return &runnelv1.Position{Epoch: sub.o.State.Epoch}
	}
	return &runnelv1.Position{Epoch: sub.o.State.Epoch, Offset: sub.seen}
}

// fill adds what the subscription may send to the frame.
func (sub *subscription) fill(f *Frame, maxBytes int, now time.Time) {
	s := sub.s
	if sub.closed || sub.reading || sub.pacedLocked(now) {
		return
	}
	if sub.look(now); s.err != nil {
		return
	}
	lim := hub.Limits{Bytes: maxBytes, Events: maxCredit, Slices: MaxFrameSlices - 1}
	if sub.o.Credit > 0 {
		if sub.credit == 0 {
			sub.hold(now) // the feed is not waited for: Credit wakes the subscription
			if sub.dry.IsZero() {
				sub.dry = now
			}
			return
		}
		lim.Events = sub.credit
	}
	// The run continues the frame's slices; the first place is for the header.
	run := hub.Run{Slices: append(f.Slices, nil), Blocks: f.blocks}
	m := move{sub: sub, live: sub.live}
	if sub.live {
		if !sub.take(&run, lim, now) {
			return
		}
		m.all = run.Next == run.Head
	} else if sub.page.take(&run, lim); run.Events == 0 {
		sub.advance()
		return
	}
	sub.going(&run, now)
	sub.countRun(run.Events, run.Passed, sub.live, run.Oldest, now)
	if run.Passed > 0 {
		sub.noticeRange(runnelv1.NoticeKind_NOTICE_KIND_CONFLATED, run.Last, run.Passed, superseded)
	}
	f.addRun(sub.o.ID, &run)
	m.events, m.next, m.last = run.Events, run.Next, run.Last
	s.inflight = append(s.inflight, m)
	sub.flying = true
}

// take takes from the feed; false if there is nothing now.
func (sub *subscription) take(run *hub.Run, lim hub.Limits, now time.Time) bool {
	var err error
	conflate := sub.o.conflates() && (sub.o.Interval > 0 || !sub.held.IsZero())
	if !conflate {
		err = sub.o.Feed.Take(&sub.cursor, lim, &sub.waiter, run)
	}
	if conflate || run.Lost && !run.Damaged && sub.o.conflates() {
		run.Lost = false
		lim.Until = sub.pace.end
		err = sub.o.Feed.TakeLatest(&sub.cursor, lim, &sub.waiter, run)
	}
	switch {
	case err != nil:
		sub.brokenLocked(err)
	case run.Lost:
		if sub.overtaken(run.Damaged, now) {
			sub.queueLocked() // the policy has moved the cursor into the window
		}
	case run.Events == 0 && sub.pace.end != 0:
		sub.pace.end = 0 // what was left of the batch is superseded
		sub.queueLocked()
	case run.Events == 0:
		sub.unhold() // it has sent all there is
	default:
		return true
	}
	return false
}

// addRun adds a run to the frame, whose slices it continues with one place for the header between.
func (f *Frame) addRun(id uint32, run *hub.Run) {
	header := len(f.Slices)
	if run.Bytes <= copyBelow {
		f.appendFresh(func(b []byte) []byte {
			b = wire.AppendDeliveryHeader(b, id, run.Bytes)
			for _, s := range run.Slices[header+1:] {
				b = append(b, s...)
			}
			return b
		})
		for _, b := range run.Blocks[len(f.blocks):] {
			b.Drop()
		}
	} else {
		f.blocks = run.Blocks
		f.appendFresh(func(b []byte) []byte { return wire.AppendDeliveryHeader(b, id, run.Bytes) })
		f.Slices = append(f.Slices, run.Slices[header+1:]...)
		f.Bytes += run.Bytes
		f.open = -1
	}
	f.Events += run.Events
}

// sent moves the cursor over what the transport has taken, and goes on.
func (sub *subscription) sent(m *move) {
	sub.flying = false
	if sub.closed {
		return
	}
	if sub.o.Credit > 0 {
		sub.credit -= uint64(m.events)
	}
	if m.live {
		sub.cursor.Move(m.next)
		sub.seen = max(sub.seen, m.last)
		sub.told = sub.seen
		if sub.pace.sent(m.next); m.all {
			sub.unhold()
			return // the feed wakes it when there is more, or has already
		}
	} else {
		sub.page.next = int(m.next)
		if len(sub.snapshot) == 0 && !sub.page.snapshot {
			sub.seen = max(sub.seen, m.last)
			sub.told = sub.seen
		}
	}
	sub.queueLocked()
}

// noticeRange queues a notice about what lies between the last event and the one at offset to.
func (sub *subscription) noticeRange(kind runnelv1.NoticeKind, to, count uint64, reason string) {
	if !sub.o.State.History {
		sub.notice(kind, 0, 0, count, reason)
		return
	}
	sub.notice(kind, sub.seen+1, to, count, reason)
}

// notice queues a notice about the subscription, in its place among the subscription's events. One that continues the last is
// added to it while that has not left.
func (sub *subscription) notice(kind runnelv1.NoticeKind, from, to, count uint64, reason string) {
	s := sub.s
	s.wake()
	if n := sub.notified; n != nil && sub.flush == s.flushes && n.GetKind() == kind && count > 0 {
		n.To, n.Count = to, n.GetCount()+count
		return
	}
	n := &runnelv1.Notice{Subscription: sub.o.ID, Kind: kind, From: from, To: to, Count: count, Reason: reason}
	sub.notified, sub.flush = n, s.flushes
	s.controls = append(s.controls, &runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: n}})
}
