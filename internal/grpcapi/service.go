// Package grpcapi is the gRPC edge: it decodes, calls the broker, and encodes. It takes no decisions, but for how to hand frames
// to grpc-go (see writer). The Service's methods are called by grpc-go, concurrently.
package grpcapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/session"
)

// Config is fixed for a Service's life. All fields but Budget, Endpoints, MaxAge, Notice and Meter are required.
type Config struct {
	Heartbeat   time.Duration
	Silence     time.Duration
	SendTimeout time.Duration
	MaxAge      time.Duration        // of a session, give or take a quarter; 0: no limit
	Notice      func() time.Duration // how long a session goes on that is told to move now; 0: it ends at once
	Endpoints   func() []string      // where clients may go now
	MaxStreams  int                  // of a connection
	Logger      *slog.Logger
	Budget      *budget.Budget // what is held for clients counts against it
	Meter       *session.Meter
}

// Service is runnel.v1.StreamService.
type Service struct {
	runnelv1.UnimplementedStreamServiceServer

	broker   *broker.Broker
	replayer *session.Replayer
	cfg      Config
	graves   graves
	pump     *pump
	// Receivers, and senders of streams that compress, end when grpc-go has ended their stream, which is after the handler has returned.
	receivers sync.WaitGroup

	mu       sync.Mutex
	draining bool
	empty    chan struct{}                // closed when it drains and the last session has gone
	sessions map[*session.Session]*stream // nil: it is about to begin
}

// New returns a Service. Close must be called after the grpc server has stopped.
func New(b *broker.Broker, r *session.Replayer, cfg Config) *Service {
	if cfg.Notice == nil {
		cfg.Notice = func() time.Duration { return 0 }
	}
	if cfg.Endpoints == nil {
		cfg.Endpoints = func() []string { return nil }
	}
	return &Service{broker: b, replayer: r, cfg: cfg, graves: graves{budget: cfg.Budget}, pump: newPump(), empty: make(chan struct{}), sessions: map[*session.Session]*stream{}}
}

// Run writes what streams have to send, until ctx ends. Streams live no longer.
func (s *Service) Run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { s.spreads(ctx) })
	s.pump.run(ctx, runtime.GOMAXPROCS(0))
	group.Wait()
}

// Close waits for what the streams have left behind.
func (s *Service) Close() {
	s.graves.close()
	s.receivers.Wait()
}

// Drain refuses new streams, tells every session to move, spread evenly over a time, and returns when all have gone or their notice is
// over, at the latest when ctx ends. It may be called once.
func (s *Service) Drain(ctx context.Context, spread time.Duration) {
	s.mu.Lock()
	s.draining = true
	all := make([]*session.Session, 0, len(s.sessions))
	for one := range s.sessions {
		all = append(all, one)
	}
	s.doneLocked()
	s.mu.Unlock()
	for i, one := range all {
		s.move(one, ErrDraining)
		if i%64 != 63 {
			continue
		}
		select {
		case <-time.After(spread * 64 / time.Duration(len(all))):
		case <-ctx.Done(): // hurry
		}
	}
	notice := time.NewTimer(s.cfg.Notice())
	defer notice.Stop()
	select {
	case <-s.empty:
	case <-notice.C:
	case <-ctx.Done():
	}
}

// doneLocked says so when there is nobody left to drain.
func (s *Service) doneLocked() {
	if !s.draining || len(s.sessions) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// move tells a session to go elsewhere, and ends it when its notice is over.
func (s *Service) move(one *session.Session, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, open := s.sessions[one]
	if !open || st != nil && st.notice != nil {
		return
	}
	notice := s.cfg.Notice()
	one.Control(&runnelv1.Control{Control: &runnelv1.Control_Drain{
		Drain: &runnelv1.Drain{WithinMs: uint32(notice.Milliseconds()), Endpoints: s.cfg.Endpoints(), Reason: why.Error()},
	}})
	if st == nil || notice == 0 {
		one.End(why)
		return
	}
	st.notice = time.AfterFunc(notice, func() { one.End(why) })
}

func (s *Service) open(interactive bool, wake func()) (*session.Session, error) {
	cfg := session.Config{
		MaxSubscriptions: int(s.broker.Limits().GetMaxSubscriptions()), Heartbeat: s.cfg.Heartbeat, SendTimeout: s.cfg.SendTimeout, Replayer: s.replayer,
		Budget: s.cfg.Budget, Meter: s.cfg.Meter, Wake: wake,
		Status: func(err error) *spb.Status { return statusOf(err).Proto() },
	}
	if interactive {
		cfg.Silence = s.cfg.Silence
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, ErrDraining
	}
	one, err := session.New(cfg)
	if err != nil {
		return nil, err
	}
	s.sessions[one] = nil
	return one, nil
}

func (s *Service) leave(one *session.Session) {
	s.mu.Lock()
	if st := s.sessions[one]; st != nil && st.notice != nil {
		st.notice.Stop()
	}
	delete(s.sessions, one)
	s.doneLocked()
	s.mu.Unlock()
	one.Close()
}

// Fail is the status that a client gets for err, by the call with that context; nil for nil.
func (s *Service) Fail(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	by, _ := callerOf(ctx)
	return s.status(by, err).Err()
}

// status is the status of err. Faults of our own are logged, since the client is told nothing but where in the log they are.
func (s *Service) status(by *caller, err error) *status.Status {
	st := statusOf(err)
	if st.Message() != internalError || by == nil {
		return st
	}
	kind, id := by.Origin()
	s.cfg.Logger.Error(internalError, "err", err, "client", by.client, kind, id)
	p := st.Proto()
	p.Message = fmt.Sprintf("%s; the server's log has it, with %s=%s", internalError, kind, id)
	return status.FromProto(p)
}

// Publish implements runnelv1.StreamServiceServer.
func (s *Service) Publish(ctx context.Context, r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, s.Fail(ctx, err)
	}
	size := int64(len(r.GetPayload()))
	if !s.cfg.Budget.Take(budget.Publishes, size) {
		return nil, s.Fail(ctx, budget.ErrExhausted)
	}
	defer s.cfg.Budget.Give(budget.Publishes, size)
	out := s.broker.Publish(ctx, by.who(), []*runnelv1.PublishRequest{r}, false)[0]
	return out.Response, s.Fail(ctx, out.Err)
}

// PublishStream implements runnelv1.StreamServiceServer.
func (s *Service) PublishStream(stream runnelv1.StreamService_PublishStreamServer) error {
	by, err := callerOf(stream.Context())
	if err != nil {
		return s.Fail(stream.Context(), err)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	sum := &runnelv1.PublishSummary{FirstFailedIndex: -1}
	var failed error
	in := newIntake(s.cfg.Budget, func(batch []pending) {
		if failed != nil {
			return
		}
		if failed = s.commitBulk(ctx, by.who(), batch, sum); failed != nil {
			cancel()
		}
	})
	received := make(chan uint64, 1)
	end := make(chan error, 1)
	s.receivers.Go(func() {
		n := uint64(0)
		for {
			r, err := stream.Recv()
			if err == nil {
				n++
				err = in.put(ctx, 0, r)
			}
			if err != nil {
				received <- n
				end <- err
				return
			}
		}
	})
	select {
	case <-ctx.Done():
	case err = <-end:
	}
	in.close()
	sum.Received = max(sum.GetReceived(), sum.GetAccepted())
	select {
	case sum.Received = <-received:
	default:
	}
	switch {
	case failed != nil:
		return with(s.status(by, failed), sum).Err()
	case errors.Is(err, errEOF):
		return stream.SendAndClose(sum)
	}
	return s.Fail(ctx, cmp.Or(context.Cause(stream.Context()), err, ctx.Err()))
}

// commitBulk appends a batch of a PublishStream and counts it.
func (s *Service) commitBulk(ctx context.Context, who broker.Caller, batch []pending, sum *runnelv1.PublishSummary) error {
	requests := make([]*runnelv1.PublishRequest, len(batch))
	for i, p := range batch {
		requests[i] = p.publish
	}
	for i, out := range s.broker.Publish(ctx, who, requests, true) {
		if out.Err != nil {
			sum.FirstFailedIndex = int64(sum.GetAccepted())
			sum.Received = sum.GetAccepted() + uint64(len(batch)-i)
			return out.Err
		}
		sum.Accepted++
		if out.Response.GetDuplicate() {
			sum.Duplicates++
		}
		sum.LastOffset, sum.Epoch = out.Response.GetOffset(), out.Response.GetEpoch()
	}
	return nil
}

// GetTopic implements runnelv1.StreamServiceServer.
func (s *Service) GetTopic(ctx context.Context, r *runnelv1.GetTopicRequest) (*runnelv1.Topic, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, s.Fail(ctx, err)
	}
	t, err := s.broker.Topic(ctx, by.who(), r.GetTopic())
	return t, s.Fail(ctx, err)
}

// ListTopics implements runnelv1.StreamServiceServer.
func (s *Service) ListTopics(ctx context.Context, r *runnelv1.ListTopicsRequest) (*runnelv1.ListTopicsResponse, error) {
	by, err := callerOf(ctx)
	if err != nil {
		return nil, s.Fail(ctx, err)
	}
	list, err := s.broker.Topics(ctx, by.who(), r)
	return list, s.Fail(ctx, err)
}

func sessionID() string { return fmt.Sprintf("s-%s", rand.Text()[:16]) }
