package grpcapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/wire"
)

// ReadHistory implements runnelv1.StreamServiceServer.
func (s *Service) ReadHistory(r *runnelv1.ReadHistoryRequest, g runnelv1.StreamService_ReadHistoryServer) error {
	s.cfg.Received("read_history")
	ctx := g.Context()
	h, err := s.broker.ReadHistory(ctx, r)
	if err != nil {
		return s.fail(err)
	}
	conn, w := connectionOf(ctx), newWriter(g)
	if conn != nil {
		conn.streams.Add(1)
		defer s.graves.bury(conn, w)
		defer conn.streams.Add(-1)
	}
	return s.fail(s.readHistory(ctx, h, w))
}

func (s *Service) readHistory(ctx context.Context, h *broker.History, w *writer) error {
	begin := &runnelv1.Control{Control: &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{
		Position: &runnelv1.Position{Epoch: h.Epoch, Offset: h.Start},
	}}}
	if err := s.put(ctx, h, w, nil, begin); err != nil {
		return err
	}
	for {
		c, err := h.Next(ctx)
		if err != nil {
			return err
		}
		if c == nil {
			break
		}
		if len(c.Elements) > 0 {
			if err := s.put(ctx, h, w, c.Elements, nil); err != nil {
				return err
			}
		}
		if c.Gap != nil {
			if err := s.put(ctx, h, w, nil, &runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: c.Gap}}); err != nil {
				return err
			}
		}
	}
	return s.put(ctx, h, w, nil, &runnelv1.Control{Control: &runnelv1.Control_Bookmark{
		Bookmark: &runnelv1.Bookmark{Position: h.Position()},
	}})
}

// put sends elements or a control, when the reader has room.
func (s *Service) put(ctx context.Context, h *broker.History, w *writer, elements []byte, c *runnelv1.Control) error {
	f := &session.Frame{}
	if elements != nil {
		f.Slices = [][]byte{wire.AppendDeliveryHeader(nil, 0, len(elements)), elements}
	} else {
		b, err := proto.Marshal(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{c}})
		if err != nil {
			return err
		}
		f.Slices = [][]byte{b}
	}
	for _, b := range f.Slices {
		f.Bytes += len(b)
	}
	if w.full() {
		timeout := time.NewTimer(s.cfg.SendTimeout)
		defer timeout.Stop()
		for w.full() {
			select {
			case <-w.freed:
			case <-ctx.Done():
				return ctx.Err()
			case <-timeout.C:
				p := h.Position()
				return &session.SlowConsumerError{Epoch: p.GetEpoch(), Offset: p.GetOffset(), Reason: "the client has taken nothing for " + s.cfg.SendTimeout.String()}
			}
		}
	}
	return w.send(f)
}
