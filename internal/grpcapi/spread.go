package grpcapi

import (
	"context"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/session"
)

// Over how long clients go elsewhere when a server is gone without a word: at least leastSpread, a millisecond more for each session that
// it has, but not above mostSpread.
const (
	leastSpread = 2 * time.Second
	mostSpread  = 10 * time.Second
)

// Sessions that are told a time when they begin are told again when it has grown by a quarter, which is looked at so often.
const (
	spreadEvery  = 2 * time.Second
	spreadGrowth = 4
)

func (s *Service) spread() (ms uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spreadLocked()
}

func (s *Service) spreadLocked() (ms uint32) {
	return uint32(min(leastSpread+time.Duration(len(s.sessions))*time.Millisecond, mostSpread).Milliseconds())
}

// spreads keeps sessions told until ctx ends: most of those of a busy server began when it had few.
func (s *Service) spreads(ctx context.Context) {
	ticker := time.NewTicker(spreadEvery)
	defer ticker.Stop()
	for told := uint32(leastSpread.Milliseconds()); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		now := s.spreadLocked()
		var all []*session.Session
		if most := uint32(mostSpread.Milliseconds()); now > told+told/spreadGrowth || now == most && told < most {
			for one, st := range s.sessions {
				if st != nil {
					all = append(all, one)
				}
			}
			told = now
		}
		told = min(told, now+now/spreadGrowth) // fewer sessions: those that come are told less
		s.mu.Unlock()
		for _, one := range all {
			one.Control(&runnelv1.Control{Control: &runnelv1.Control_Heartbeat{Heartbeat: &runnelv1.Heartbeat{SpreadMs: now}}})
		}
	}
}
