package grpcapi

import (
	"context"
	"runtime"
	"slices"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/session"
)

// Over how long clients go elsewhere when a server is gone without a word: at least leastSpread, more for each session that it has, but not above
// mostSpread. To take over a session costs a server more than a millisecond of CPU, and those that it has are not to notice: spreadCPU, of all
// processors together, has it spend about a quarter of itself on that, if it is as large as this one.
const (
	leastSpread = 2 * time.Second
	spreadCPU   = 6 * time.Millisecond
	mostSpread  = 30 * time.Second
)

// Sessions that are told a time when they begin are told again when it has grown by half, which is looked at every spreadEvery, and not all at once,
// since a server that grows fast has little to spare: for each processor spreadPart of them every tellEvery.
const (
	spreadEvery = 2 * time.Second
	tellEvery   = 100 * time.Millisecond
	spreadPart  = 25
)

func (s *Service) spread() (ms uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spreadLocked()
}

func (s *Service) spreadLocked() (ms uint32) {
	return uint32(min(leastSpread+time.Duration(len(s.sessions))*spreadCPU/time.Duration(runtime.GOMAXPROCS(0)), mostSpread).Milliseconds())
}

// spreads keeps sessions told until ctx ends: most of those of a busy server began when it had few.
func (s *Service) spreads(ctx context.Context) {
	const most = uint32(mostSpread / time.Millisecond)
	looks, parts := time.NewTicker(spreadEvery), time.NewTicker(tellEvery)
	defer looks.Stop()
	defer parts.Stop()
	for told := uint32(leastSpread.Milliseconds()); ; {
		select {
		case <-looks.C:
		case <-ctx.Done():
			return
		}
		var all []*session.Session
		s.mu.Lock()
		now := s.spreadLocked()
		if now > told+told/2 || now == most && told < most {
			all = make([]*session.Session, 0, len(s.sessions))
			for one, st := range s.sessions {
				if st != nil {
					all = append(all, one)
				}
			}
			told = now
		}
		s.mu.Unlock()
		told = min(told, now+now/2) // fewer sessions: those that come are told less
		for part := range slices.Chunk(all, spreadPart*runtime.GOMAXPROCS(0)) {
			for _, one := range part { // one that is over by now takes nothing
				one.Control(&runnelv1.Control{Control: &runnelv1.Control_Heartbeat{Heartbeat: &runnelv1.Heartbeat{SpreadMs: now}}})
			}
			select {
			case <-parts.C:
			case <-ctx.Done():
				return
			}
		}
	}
}
