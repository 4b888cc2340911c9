package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/session"
)

// headers is a stream that lets everybody else run while its headers are on their way.
type headers struct {
	ctx context.Context
	err error // of SendHeader

	mu     sync.Mutex
	events []string
}

func (h *headers) note(event string) {
	h.mu.Lock()
	h.events = append(h.events, event)
	h.mu.Unlock()
}

func (h *headers) SendHeader(metadata.MD) error {
	synctest.Wait()
	h.note("header")
	return h.err
}

func (h *headers) SendMsg(any) error           { h.note("message"); return nil }
func (h *headers) SetHeader(metadata.MD) error { return nil }
func (h *headers) SetTrailer(metadata.MD)      {}
func (h *headers) RecvMsg(any) error           { return nil }
func (h *headers) Context() context.Context    { return h.ctx }

// A worker of the pump must not send before the headers have gone: grpc-go would send them by itself, and refuse the handler's.
func TestHeadersComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := New(broker.New(nil, nil, broker.Config{MaxSubscriptions: 1}), session.NewReplayer(), Config{
			Heartbeat: time.Minute, Silence: time.Minute, SendTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler),
			Budget: budget.New(1 << 30),
		})
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		by := &caller{g: NewGuard(GuardConfig{}), client: "c"}
		h := &headers{ctx: context.WithValue(ctx, callerKey{}, by)}
		st, err := s.begin(h, true)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(h.events) < 2 || h.events[0] != "header" || h.events[1] != "message" {
			t.Errorf("sent: %v", h.events)
		}
		st.end()
		cancel()
		running.Wait()
		s.Close()
	})
}

// A client that goes away while its stream begins is no fault of the server's, and nothing for its log.
func TestGoneAtTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := New(broker.New(nil, nil, broker.Config{MaxSubscriptions: 1}), session.NewReplayer(), Config{
			Heartbeat: time.Minute, Silence: time.Minute, SendTimeout: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Budget: budget.New(1 << 30),
		})
		defer s.Close()
		by := &caller{g: NewGuard(GuardConfig{}), client: "c"}
		h := &establishing{headers{ctx: context.WithValue(t.Context(), callerKey{}, by), err: errors.New("transport is closing")}}
		if err := s.EstablishStream(h); status.Code(err) != codes.Canceled || log.Len() > 0 {
			t.Errorf("%v; the log: %s", err, &log)
		}
	})
}

// establishing is headers for EstablishStream.
type establishing struct{ headers }

func (*establishing) Send(*runnelv1.StreamResponse) error    { return nil }
func (*establishing) Recv() (*runnelv1.StreamRequest, error) { return nil, io.EOF }
