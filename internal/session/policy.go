package session

import (
	"fmt"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// A policy acts on the subscriber's own speed: when its credit or its stream was used up, never on a burst that it had no chance
// to read.

// actOnLag applies the policy if the subscriber was held up since the last look.
func (sub *subscription) actOnLag() {
	held := sub.starved || sub.stalls != sub.s.stalls
	sub.starved, sub.stalls = false, sub.s.stalls
	if held {
		sub.applyLag()
	}
}

// starve notes that the credit is used up. The feed is not waited for: Credit wakes the subscription.
func (sub *subscription) starve() {
	if !sub.starved {
		sub.starved = true
		sub.s.timer.Reset(min(tickEvery, sub.s.cfg.Heartbeat))
	}
}

// applyLag drops or disconnects if the subscription is further behind than it may be.
func (sub *subscription) applyLag() {
	if !sub.live || sub.closed {
		return
	}
	switch sub.o.Policy {
	case runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST:
		if sub.o.Feed.Behind(sub.cursor) > sub.o.MaxLag {
			sub.drop(sub.o.MaxLag)
		}
	case runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT:
		if n := sub.o.Feed.Behind(sub.cursor); n > sub.o.MaxLag {
			sub.disconnect(fmt.Sprintf("it is %d events behind, %d are allowed", n, sub.o.MaxLag))
		}
	}
}

// overtaken handles a cursor that has fallen out of the window; true if it is back in it.
func (sub *subscription) overtaken() bool {
	switch sub.o.Policy {
	case runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP:
		sub.live = false
		if !sub.behind {
			sub.behind = true
			sub.notice(&runnelv1.Notice{Kind: runnelv1.NoticeKind_NOTICE_KIND_BEHIND, From: sub.seen, To: sub.seen, Reason: "reading the log"})
		}
		sub.advance()
		return false
	case runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST:
		sub.drop(sub.o.MaxLag)
		return true
	default:
		sub.disconnect("it is further behind than the server's memory reaches")
		return false
	}
}

func (sub *subscription) drop(keep uint64) {
	next, n, last := sub.o.Feed.Skip(sub.cursor, keep)
	if n == 0 {
		return
	}
	from := sub.seen + 1
	sub.cursor, sub.seen = next, max(sub.seen, last)
	sub.told = sub.seen
	if !sub.o.State.History {
		from, last = 0, 0
	}
	sub.notice(&runnelv1.Notice{
		Kind: runnelv1.NoticeKind_NOTICE_KIND_DROPPED, From: from, To: last, Count: n, Reason: "the subscriber is slower than the topic",
	})
}

func (sub *subscription) disconnect(reason string) {
	p := sub.position()
	sub.s.endLocked(&SlowConsumerError{Subscription: sub.o.ID, Epoch: p.GetEpoch(), Offset: p.GetOffset(), Reason: reason})
}
