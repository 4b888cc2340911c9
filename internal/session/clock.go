package session

import (
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// tick is the session's one timer: heartbeats, silence, bookmarks, and whoever is held up.
func (s *Session) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	now := time.Now()
	if s.cfg.Silence > 0 && now.Sub(s.heard) >= s.cfg.Silence {
		s.endLocked(ErrSilent)
		return
	}
	if s.heldUpLocked(now); s.err != nil {
		return
	}
	if now.Sub(s.marked) >= s.heartbeat {
		s.marked = now
		s.bookmarksLocked()
	}
	if now.Sub(s.sent) >= s.heartbeat && len(s.controls) == 0 && s.blocked.IsZero() {
		s.controls = append(s.controls, &runnelv1.Control{Control: &runnelv1.Control_Heartbeat{Heartbeat: &runnelv1.Heartbeat{}}})
		s.sent = now // queued; the writer notes when it has gone out
		s.wake()
	}
	s.timer.Reset(s.dueLocked(now))
}

// heldUpLocked lets policies act on subscriptions that cannot send, and ends a session whose transport takes nothing.
func (s *Session) heldUpLocked(now time.Time) {
	stuck := !s.blocked.IsZero()
	if stuck && now.Sub(s.blocked) >= s.cfg.SendTimeout {
		for _, sub := range s.subs {
			sub.disconnect("the client has taken nothing for " + s.cfg.SendTimeout.String())
			return
		}
		s.endLocked(&SlowConsumerError{Reason: "the client has taken nothing for " + s.cfg.SendTimeout.String()})
		return
	}
	stuck = stuck && now.Sub(s.blocked) >= stallAfter
	for _, sub := range s.subs {
		if (stuck || sub.starved) && !sub.inFlight() {
			if sub.applyLag(); s.err != nil {
				return
			}
		}
	}
}

// inFlight says that a frame with the subscription's events is with the writer: its cursor must stay.
func (sub *subscription) inFlight() bool {
	for _, m := range sub.s.inflight {
		if m.sub == sub {
			return true
		}
	}
	return false
}

// bookmarksLocked tells clients of quiet subscriptions where they stand.
func (s *Session) bookmarksLocked() {
	for _, sub := range s.subs {
		if !sub.o.State.History || sub.closed || sub.inFlight() {
			continue
		}
		if sub.live {
			if position, quiet := sub.o.Feed.Quiet(sub.cursor); quiet {
				sub.seen = max(sub.seen, position)
			}
		}
		if sub.seen > sub.told && len(sub.snapshot) == 0 && !sub.page.snapshot {
			sub.told = sub.seen
			s.controls = append(s.controls, &runnelv1.Control{Control: &runnelv1.Control_Bookmark{
				Bookmark: &runnelv1.Bookmark{Subscription: sub.o.ID, Position: sub.position()},
			}})
			s.wake()
		}
	}
}

// dueLocked is when the session must be looked at next.
func (s *Session) dueLocked(now time.Time) time.Duration {
	if !s.blocked.IsZero() || s.starvedLocked() {
		return tickEvery
	}
	due := min(s.sent.Add(s.heartbeat).Sub(now), s.marked.Add(s.heartbeat).Sub(now))
	if s.cfg.Silence > 0 {
		due = min(due, s.heard.Add(s.cfg.Silence).Sub(now))
	}
	return max(due, time.Millisecond)
}

// starvedLocked says whether a policy is waiting to act on used-up credit.
func (s *Session) starvedLocked() bool {
	for _, sub := range s.subs {
		if sub.starved && sub.o.Policy != runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP {
			return true
		}
	}
	return false
}
