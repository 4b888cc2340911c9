package session

import (
	"fmt"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// A policy acts on the subscriber's own speed: when its credit or its stream was used up, never on a burst that it had no chance
// to read. So a subscription is held up from when either was used up until it has sent everything there is. While it is, CONFLATE
// conflates; after stallAfter, DROP_OLDEST and DISCONNECT act on its lag.

// look notes whether the stream was used up since the last look, and applies the policy if the subscription is held up.
func (sub *subscription) look(now time.Time) {
	if sub.pauses != sub.s.pauses {
		sub.pauses = sub.s.pauses
		sub.hold(now)
	}
	sub.applyLag(now)
}

// hold notes that the subscription is held up.
func (sub *subscription) hold(now time.Time) {
	if sub.held.IsZero() {
		sub.held = now
		if sub.limited() {
			sub.s.held++
			sub.s.lookLocked(now.Add(tickEvery))
		}
	}
}

func (sub *subscription) unhold() {
	if !sub.held.IsZero() {
		sub.held = time.Time{}
		if sub.limited() {
			sub.s.held--
		}
	}
}

// limited says that the policy acts on lag by itself, without waiting until the subscription can send.
func (sub *subscription) limited() bool {
	return sub.o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST ||
		sub.o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT
}

// applyLag drops or disconnects if the subscription is held up and further behind than it may be.
func (sub *subscription) applyLag(now time.Time) {
	if !sub.limited() || sub.held.IsZero() || now.Sub(sub.held) < stallAfter || !sub.live || sub.closed || sub.flying {
		return
	}
	events, oldest := sub.o.Feed.Lag(&sub.cursor)
	old := sub.o.MaxAge > 0 && oldest > 0 && now.Sub(time.UnixMilli(oldest)) > sub.o.MaxAge
	switch {
	case events <= sub.o.MaxLag && !old:
	case sub.o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST:
		sub.drop(now)
	case old:
		sub.disconnect(fmt.Sprintf("its oldest event waits for longer than %v", sub.o.MaxAge))
	default:
		sub.disconnect(fmt.Sprintf("it is %d events behind, %d are allowed", events, sub.o.MaxLag))
	}
}

// overtaken handles a cursor whose elements are not held any more; true if it is back in the window. damaged: because the
// log is damaged there, which only the log can tell more about.
func (sub *subscription) overtaken(damaged bool, now time.Time) bool {
	switch p := sub.o.Policy; {
	case damaged || p == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP || sub.o.conflates() && sub.o.State.History:
		sub.live, sub.pace.end = false, 0
		if !sub.behind {
			sub.setBehind(true)
			sub.notice(runnelv1.NoticeKind_NOTICE_KIND_BEHIND, sub.seen, sub.seen, 0, "reading the log")
		}
		sub.advance()
		return false
	case p == runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST:
		sub.drop(now)
		return true
	case sub.o.conflates():
		n, last := sub.o.Feed.SkipLost(&sub.cursor)
		sub.dropped(n, last, "there are more keys than the server's memory holds")
		return true
	default:
		sub.disconnect("it is further behind than the server's memory reaches")
		return false
	}
}

func (sub *subscription) drop(now time.Time) {
	since := int64(0)
	if sub.o.MaxAge > 0 {
		since = now.Add(-sub.o.MaxAge).UnixMilli()
	}
	n, last := sub.o.Feed.Skip(&sub.cursor, sub.o.MaxLag, since)
	sub.dropped(n, last, "the subscriber is slower than the topic")
}

func (sub *subscription) dropped(n, last uint64, reason string) {
	if n == 0 {
		return
	}
	sub.countDropped(n)
	sub.noticeRange(runnelv1.NoticeKind_NOTICE_KIND_DROPPED, last, n, reason)
	sub.seen = max(sub.seen, last)
	sub.told = sub.seen
}

func (sub *subscription) disconnect(reason string) {
	p := sub.position()
	sub.s.endLocked(&SlowConsumerError{Subscription: sub.o.ID, Epoch: p.GetEpoch(), Offset: p.GetOffset(), Reason: reason})
}
