package grpcapi

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/session"
)

// errDisconnected ends sessions that an operator has disconnected.
var errDisconnected = errors.New("disconnected by an operator")

// streams are those of all sessions.
func (s *Service) streams() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*stream, 0, len(s.sessions))
	for _, st := range s.sessions {
		if st != nil {
			all = append(all, st)
		}
	}
	return all
}

// Sessions describes sessions whose client id, subject or address begins with match, in order, and says how many there are.
func (s *Service) Sessions(match string, order runnelv1.SessionOrder, limit int) (list []*runnelv1.SessionInfo, matched int) {
	for _, st := range s.streams() {
		if i := st.info(); match == "" || strings.HasPrefix(i.GetClientId(), match) || strings.HasPrefix(i.GetSubject(), match) || strings.HasPrefix(i.GetAddress(), match) {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b *runnelv1.SessionInfo) int {
		c := 0
		switch order {
		case runnelv1.SessionOrder_SESSION_ORDER_RATE:
			c = cmp.Compare(b.GetEventsPerS(), a.GetEventsPerS())
		case runnelv1.SessionOrder_SESSION_ORDER_DELAY:
			c = cmp.Compare(b.GetP99Ms(), a.GetP99Ms())
		case runnelv1.SessionOrder_SESSION_ORDER_AGE:
			c = cmp.Compare(b.GetSinceMs(), a.GetSinceMs())
		default:
			c = cmp.Compare(b.GetLag(), a.GetLag())
		}
		return cmp.Or(c, strings.Compare(a.GetSessionId(), b.GetSessionId()))
	})
	matched = len(list)
	return list[:min(limit, matched)], matched
}

// Session describes one session with its subscriptions; false if there is none of that id.
func (s *Service) Session(id string) (*runnelv1.SessionInfo, []*runnelv1.SubscriptionInfo, bool) {
	for _, st := range s.streams() {
		if st.id != id {
			continue
		}
		var subs []*runnelv1.SubscriptionInfo
		for _, sub := range st.one.Subscriptions() {
			subs = append(subs, &runnelv1.SubscriptionInfo{
				Subscription: sub.ID, Pattern: sub.Pattern.String(), Overflow: sub.Policy, Live: sub.Live, Position: sub.Position, Lag: sub.Lag, Credit: sub.Credit,
				Delivered: sub.Delivered, Dropped: sub.Dropped, Conflated: sub.Conflated, Gaps: sub.Gaps, P50Ms: ms(sub.P50), P99Ms: ms(sub.P99),
			})
		}
		return st.info(), subs, true
	}
	return nil, nil, false
}

// StuckAfter is how long a client takes nothing before its session counts as stuck.
const StuckAfter = time.Second

// Lag is how far all subscriptions are behind, at most and together, and how many sessions are stuck.
func (s *Service) Lag() (most, sum uint64, stuck int) {
	for _, st := range s.streams() {
		n, all, since := st.one.Lag()
		most, sum = max(most, n), sum+all
		if since >= StuckAfter {
			stuck++
		}
	}
	return most, sum, stuck
}

// Disconnect ends sessions that f picks, and returns how many.
func (s *Service) Disconnect(f func(id, client, subject string) bool) int {
	n := 0
	for _, st := range s.streams() {
		subject := ""
		if a := st.by.access.Load(); a != nil {
			subject = a.Identity.Subject
		}
		if f(st.id, st.by.client, subject) {
			st.by.note(audit.Cut, slog.String("reason", "disconnected"))
			st.one.End(errDisconnected)
			n++
		}
	}
	return n
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (st *stream) info() *runnelv1.SessionInfo {
	i := st.one.Info()
	out := &runnelv1.SessionInfo{
		SessionId: st.id, ClientId: st.by.client, Address: st.by.address(), SinceMs: i.Began.UnixMilli(), Subscriptions: uint32(i.Subscriptions), Lag: i.Lag,
		Delivered: i.Delivered, Dropped: i.Dropped, Conflated: i.Conflated, Gaps: i.Gaps, EventsPerS: i.Rate, P50Ms: ms(i.P50), P99Ms: ms(i.P99),
		BlockedMs: i.Stuck.Milliseconds(), Held: uint32(i.Held), Errors: st.errors.Load(),
	}
	if reason := st.lastError.Load(); reason != nil {
		out.LastError = *reason
	}
	if a := st.by.access.Load(); a != nil {
		out.Subject, out.Roles = a.Identity.Subject, a.Roles
		if !a.Identity.Expires.IsZero() {
			out.ExpiresMs = a.Identity.Expires.UnixMilli()
		}
	}
	return out
}

// known makes a session's stream visible to operators.
func (s *Service) known(one *session.Session, st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.sessions[one]; open {
		s.sessions[one] = st
	}
}
