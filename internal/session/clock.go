package session

import (
	"container/heap"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// tick is the session's one timer: heartbeats, silence, bookmarks, intervals, and whoever is held up.
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
	for len(s.paced) > 0 && !s.paced[0].pace.after.After(now) {
		heap.Pop(&s.paced).(*subscription).queueLocked()
		s.wake()
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
	s.due = s.dueLocked(now)
	s.timer.Reset(s.due.Sub(now))
}

// lookLocked makes the timer fire at t, or sooner.
func (s *Session) lookLocked(t time.Time) {
	if s.err == nil && t.Before(s.due) {
		s.due = t
		s.timer.Reset(time.Until(t))
	}
}

// heldUpLocked lets policies act on subscriptions that cannot send, and ends a session whose transport takes nothing for too long, or
// for a while when memory is short: it holds what others need.
func (s *Session) heldUpLocked(now time.Time) {
	if !s.blocked.IsZero() {
		stuck := now.Sub(s.blocked)
		switch {
		case stuck >= s.cfg.SendTimeout:
			s.evictLocked("the client has taken nothing for " + s.cfg.SendTimeout.String())
			return
		case stuck >= tickEvery && s.cfg.Budget.Short():
			s.evictLocked("the client takes nothing, and the server's memory is short")
			return
		}
		for _, sub := range s.queue {
			sub.hold(s.blocked)
		}
	}
	short := s.cfg.Budget.Short()
	if s.held == 0 && !short {
		return
	}
	for _, sub := range s.subs {
		if sub.applyLag(now); s.err != nil {
			return
		}
		if short && !sub.held.IsZero() && !sub.flying {
			sub.page.forget() // it can be read again
		}
	}
}

// evictLocked ends the session and names a subscription and its position, if there is one.
func (s *Session) evictLocked(reason string) {
	for _, sub := range s.subs {
		sub.disconnect(reason)
		return
	}
	s.endLocked(&SlowConsumerError{Reason: reason})
}

// bookmarksLocked tells clients of quiet subscriptions where they stand.
func (s *Session) bookmarksLocked() {
	for _, sub := range s.subs {
		if !sub.o.State.History || sub.closed || sub.flying {
			continue
		}
		if sub.live {
			if position, quiet := sub.o.Feed.Quiet(&sub.cursor); quiet {
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
func (s *Session) dueLocked(now time.Time) time.Time {
	due := earlier(s.sent.Add(s.heartbeat), s.marked.Add(s.heartbeat))
	if s.cfg.Silence > 0 {
		due = earlier(due, s.heard.Add(s.cfg.Silence))
	}
	if !s.blocked.IsZero() || s.held > 0 {
		due = earlier(due, now.Add(tickEvery))
	}
	if len(s.paced) > 0 {
		due = earlier(due, s.paced[0].pace.after)
	}
	if soonest := now.Add(time.Millisecond); due.Before(soonest) {
		return soonest
	}
	return due
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
