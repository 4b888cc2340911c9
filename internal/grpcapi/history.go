package grpcapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/wire"
)

// ReadHistory implements runnelv1.StreamServiceServer.
func (s *Service) ReadHistory(r *runnelv1.ReadHistoryRequest, g runnelv1.StreamService_ReadHistoryServer) error {
	ctx := g.Context()
	by, err := callerOf(ctx)
	if err != nil {
		return s.Fail(ctx, err)
	}
	h, err := s.broker.ReadHistory(ctx, by.who(), r)
	if err != nil {
		return s.Fail(ctx, err)
	}
	if !s.cfg.Budget.Take(budget.Sessions, historyCost) {
		return s.Fail(ctx, budget.ErrExhausted)
	}
	defer s.cfg.Budget.Give(budget.Sessions, historyCost)
	freed := make(chan struct{}, 1)
	conn, w := connectionOf(ctx), newWriter(g, rpcReadHistory, func() {
		select {
		case freed <- struct{}{}:
		default:
		}
	})
	if compression(ctx) != "" {
		s.receivers.Go(w.compresses())
		defer w.close()
	}
	if conn != nil {
		conn.streams.Add(1)
		defer s.graves.bury(conn, w)
		defer conn.streams.Add(-1)
	}
	err = (&reader{s, by, h, w, freed}).run(ctx)
	if cause := context.Cause(ctx); cause != nil { // why the guard has ended the call
		err = cause
	}
	return s.Fail(ctx, err)
}

const (
	// historyCost is what a ReadHistory call is counted as, like a session.
	historyCost = 40 << 10
	// historyPage is what is waited for before a page is read; what it really takes is counted then.
	historyPage = 64 << 10
)

// reader is one ReadHistory call, which writes for itself: it waits for pages anyhow.
type reader struct {
	s     *Service
	by    *caller
	h     *broker.History
	w     *writer
	freed chan struct{} // receives when w is no longer full
}

func (r *reader) run(ctx context.Context) error {
	s, h := r.s, r.h
	begin := &runnelv1.Control{Control: &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{
		Position: &runnelv1.Position{Epoch: h.Epoch, Offset: h.Start},
	}}}
	if err := r.control(ctx, begin); err != nil {
		return err
	}
	for {
		if err := s.cfg.Budget.Wait(ctx, budget.Pages, historyPage); err != nil {
			return err
		}
		c, err := h.Next(ctx, r.by.access.Load())
		s.cfg.Budget.Give(budget.Pages, historyPage)
		if err != nil {
			return err
		}
		if c == nil {
			break
		}
		if n := len(c.Elements); n > 0 {
			p := newParcel()
			p.frame.Add(wire.AppendDeliveryHeader(nil, 0, n), nil)
			p.frame.Add(c.Elements, s.cfg.Budget.ForcedBlock(budget.Pages, int64(n)))
			if err := r.put(ctx, p); err != nil {
				return err
			}
		}
		if c.Gap != nil {
			if err := r.control(ctx, &runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: c.Gap}}); err != nil {
				return err
			}
		}
	}
	return r.control(ctx, &runnelv1.Control{Control: &runnelv1.Control_Bookmark{
		Bookmark: &runnelv1.Bookmark{Position: h.Position()},
	}})
}

func (r *reader) control(ctx context.Context, c *runnelv1.Control) error {
	b, err := proto.Marshal(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{c}})
	if err != nil {
		return err
	}
	p := newParcel()
	p.frame.Add(b, nil)
	return r.put(ctx, p)
}

// put sends a parcel when the reader has room.
func (r *reader) put(ctx context.Context, p *parcel) error {
	if r.w.full() {
		if err := r.awaitRoom(ctx); err != nil {
			p.free()
			return err
		}
	}
	return r.w.send(p)
}

func (r *reader) awaitRoom(ctx context.Context) error {
	limit := r.s.cfg.SendTimeout
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for r.w.full() {
		select {
		case <-r.freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			at := r.h.Position()
			return &session.SlowConsumerError{Epoch: at.GetEpoch(), Offset: at.GetOffset(), Reason: "the client has taken nothing for " + limit.String()}
		}
	}
	return nil
}
