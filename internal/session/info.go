package session

import (
	"slices"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// Info is what a session looks like at one moment, for operators.
type Info struct {
	Began     time.Time
	Delivered uint64
	Dropped   uint64
	Conflated uint64
	Gaps      uint64
	Lag       uint64        // of the subscription that is farthest behind
	Rate      float64       // events per second, lately
	P50, P99  time.Duration // of delays, lately, in powers of two milliseconds; 0 without events
	Stuck     time.Duration // for how long the client has taken nothing: its transport is full, or credit is used up while events wait
	Held      int           // subscriptions whose credit or stream was used up, and which have not sent all there is since
	Ends      error         // why it is over; nil if it is not

	Subscriptions int
}

// SubscriptionInfo is one of its subscriptions.
type SubscriptionInfo struct {
	ID        uint32
	Pattern   topic.Pattern
	Policy    runnelv1.OverflowPolicy
	Live      bool
	Position  *runnelv1.Position
	Lag       uint64 // live: events that match and were not sent; else offsets of the namespace not yet read
	Credit    uint64 // left; 0 without credit
	Delivered uint64
	Dropped   uint64
	Conflated uint64
	Gaps      uint64
	P50, P99  time.Duration
}

// rateOver is the least time over which a rate is taken.
const rateOver = 500 * time.Millisecond

// Info describes the session.
func (s *Session) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := Info{Began: s.began, Subscriptions: len(s.subs), Ends: s.err}
	now := time.Now()
	i.Lag, _, i.Stuck = s.lagLocked(now)
	var all delays
	for _, sub := range s.subs {
		t := &sub.tally
		i.Delivered += t.delivered
		i.Dropped += t.dropped
		i.Conflated += t.conflated
		i.Gaps += t.gaps
		if !sub.held.IsZero() && sub.lagLocked() > 0 {
			i.Held++
		}
		for j, n := range t.delays.buckets {
			all.buckets[j] = uint16(min(int(all.buckets[j])+int(n), 1<<16-1))
		}
	}
	i.Delivered += s.gone.delivered
	i.Dropped += s.gone.dropped
	i.Conflated += s.gone.conflated
	i.Gaps += s.gone.gaps
	i.P50, i.P99 = all.both()
	i.Rate = s.rate.at(now, i.Delivered)
	return i
}

// Lag is how far the session's subscriptions are behind, at most and together, and for how long the client has taken nothing (Info.Stuck).
func (s *Session) Lag() (most, sum uint64, stuck time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lagLocked(time.Now())
}

func (s *Session) lagLocked(now time.Time) (most, sum uint64, stuck time.Duration) {
	if !s.blocked.IsZero() {
		stuck = now.Sub(s.blocked)
	}
	for _, sub := range s.subs {
		n := sub.lagLocked()
		most, sum = max(most, n), sum+n
		if n > 0 && !sub.dry.IsZero() {
			stuck = max(stuck, now.Sub(sub.dry))
		}
	}
	return most, sum, stuck
}

// Subscriptions describes the session's subscriptions, by id.
func (s *Session) Subscriptions() []SubscriptionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]SubscriptionInfo, 0, len(s.subs))
	for _, sub := range s.subs {
		t := &sub.tally
		one := SubscriptionInfo{
			ID: sub.o.ID, Pattern: sub.o.Pattern, Policy: sub.o.Policy, Live: sub.live, Position: sub.position(), Lag: sub.lagLocked(),
			Delivered: t.delivered, Dropped: t.dropped, Conflated: t.conflated, Gaps: t.gaps,
		}
		if sub.o.Credit > 0 {
			one.Credit = sub.credit
		}
		one.P50, one.P99 = t.delays.both()
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b SubscriptionInfo) int { return int(int64(a.ID) - int64(b.ID)) })
	return list
}

// lagLocked is how far the subscription is behind.
func (sub *subscription) lagLocked() uint64 {
	if sub.closed {
		return 0
	}
	if sub.live {
		events, _ := sub.o.Feed.Lag(&sub.cursor)
		return events
	}
	head := sub.o.Log.State().Head
	return head - min(sub.seen, head)
}

func (d *delays) both() (p50, p99 time.Duration) {
	ms := func(q float64) time.Duration { return time.Duration(d.quantile(q) * float64(time.Millisecond)) }
	return ms(0.5), ms(0.99)
}

// rate is how fast a count rises, between two looks at it.
type rate struct {
	since time.Time
	count uint64
	last  float64
}

func (r *rate) at(now time.Time, count uint64) float64 {
	if past := now.Sub(r.since); past >= rateOver {
		r.last = float64(count-min(r.count, count)) / past.Seconds()
		r.since, r.count = now, count
	}
	return r.last
}
