package grpcapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/session"
)

var errEOF = io.EOF

// stream is one Subscribe or EstablishStream call.
type stream struct {
	s    *Service
	id   string
	one  *session.Session
	by   *caller
	out  *outlet
	conn *connection
	age  *time.Timer // ends the session when it is old; nil: it may get as old as it likes
	// notice ends the session that was told to move; nil: it was not. Guarded by the service's mu.
	notice *time.Timer

	errors    atomic.Uint64 // commands that failed
	lastError atomic.Pointer[string]
}

func (s *Service) begin(g grpc.ServerStream, interactive bool) (*stream, error) {
	ctx := g.Context()
	by, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := by.limits.Session(); err != nil {
		return nil, err
	}
	out := newOutlet(s.pump)
	kind := rpcSubscribe
	if interactive {
		kind = rpcSession
	}
	out.w = newWriter(g, kind, out.wake)
	if out.one, err = s.open(interactive, out.wake); err != nil {
		return nil, err
	}
	one := out.one
	st := &stream{s: s, id: sessionID(), one: one, by: by, out: out, conn: by.conn}
	if compression(ctx) != "" {
		s.receivers.Go(out.w.compresses())
	}
	if st.conn != nil {
		st.conn.streams.Add(1)
	}
	limits := s.broker.Limits()
	limits.MaxStreams = uint32(s.cfg.MaxStreams)
	limits.SilenceS = uint32(s.cfg.Silence / time.Second)
	one.Control(&runnelv1.Control{Control: &runnelv1.Control_Welcome{Welcome: &runnelv1.Welcome{
		SessionId: st.id, ClientId: by.client, HeartbeatS: uint32(s.cfg.Heartbeat / time.Second), Limits: limits, Endpoints: s.cfg.Endpoints(),
		SpreadMs: s.spread(),
	}}})
	// Headers at once tell the client that it is connected, and let grpc-go drop what it kept for a retry. They must be the first thing
	// that is sent.
	if err := g.SendHeader(nil); err != nil {
		if _, told := status.FromError(err); !told {
			err = context.Canceled // the connection is gone, which the stream may not know yet
		}
		return st, err
	}
	out.start()
	by.attach(st)
	s.known(one, st)
	st.limitAge()
	by.note(audit.Connected)
	return st, nil
}

// limitAge makes the session end when it is old. Ages are spread, so that sessions that began together do not end together.
func (st *stream) limitAge() {
	most := st.s.cfg.MaxAge
	if most == 0 {
		return
	}
	spread := most / 4
	st.age = time.AfterFunc(most-spread+rand.N(2*spread+1), func() { st.s.move(st.one, errAged) })
}

// errAged ends sessions that are older than sessions may get.
var errAged = errors.New("the stream has reached its greatest age")

// wait returns when the stream is over.
func (st *stream) wait(ctx context.Context) error {
	err := st.out.wait(ctx)
	st.by.note(audit.Ended, slog.String("reason", reasonOf(err)))
	st.slow(err, ctx.Err() != nil)
	return err
}

// slowAfter is how long a client takes nothing before the end of its connection is put down to that.
const slowAfter = 5 * time.Second

// slow tells operators of a session that has ended because its client was too slow: the server says so, or the connection of a client that
// takes nothing has broken. (The kernel gives such a connection up sooner than send_timeout, when keepalive's patience is at an end.)
func (st *stream) slow(err error, broken bool) {
	most, _, stuck := st.one.Lag()
	told := errors.As(err, new(*session.SlowConsumerError))
	switch {
	case broken && !told && stuck >= slowAfter:
		st.s.cfg.Meter.Slowed()
	case !told:
		return
	}
	st.s.cfg.Logger.Warn("a session has ended because its client was too slow", "session", st.id, "client", st.by.client, "address", st.by.address(),
		"reason", reasonOf(err), "stuck", stuck.Round(time.Millisecond), "lag", most)
}

// end gives back the session and whatever a stuck client holds. Nothing is sent any more.
func (st *stream) end() {
	if st.age != nil {
		st.age.Stop()
	}
	st.by.detach()
	st.out.stop()
	st.out.w.close()
	st.s.leave(st.one)
	if st.conn != nil {
		st.conn.streams.Add(-1)
		st.s.graves.bury(st.conn, st.out.w)
	}
}

// Subscribe implements runnelv1.StreamServiceServer.
func (s *Service) Subscribe(r *runnelv1.SubscribeRequest, g runnelv1.StreamService_SubscribeServer) error {
	if len(r.GetSubscriptions()) == 0 {
		return s.Fail(g.Context(), &broker.InvalidError{Field: "subscriptions", Reason: "there is none; name at least one pattern"})
	}
	st, err := s.begin(g, false)
	if st != nil {
		defer st.end()
	}
	if err != nil {
		return s.Fail(g.Context(), err)
	}
	for _, sub := range r.GetSubscriptions() {
		err := st.subscribe(g.Context(), 0, sub)
		if st.one.Err() != nil {
			break // the session ended meanwhile, and what it has told the client, as where to go, comes first
		}
		if err != nil {
			return s.Fail(g.Context(), err)
		}
	}
	return s.Fail(g.Context(), st.wait(g.Context()))
}

// EstablishStream implements runnelv1.StreamServiceServer.
func (s *Service) EstablishStream(g runnelv1.StreamService_EstablishStreamServer) error {
	st, err := s.begin(g, true)
	if st != nil {
		defer st.end()
	}
	if err != nil {
		return s.Fail(g.Context(), err)
	}
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	in := newIntake(s.cfg.Budget, func(batch []pending) { st.commit(ctx, batch) })
	defer in.close()
	defer cancel() // before in.close: commits that cannot be answered are not waited for
	s.receivers.Go(func() {
		err := st.receive(ctx, g, in)
		if errors.Is(err, io.EOF) {
			in.close() // answers first
			st.one.Finish()
			return
		}
		st.one.End(err)
	})
	err = st.wait(ctx)
	if errors.Is(err, session.ErrFinished) {
		return nil
	}
	return s.Fail(ctx, err)
}

// receive reads the client's requests until the stream ends.
func (st *stream) receive(ctx context.Context, g runnelv1.StreamService_EstablishStreamServer, in *intake) error {
	for {
		r, err := g.Recv()
		if err != nil {
			return err
		}
		st.one.Heard()
		if err := st.command(ctx, r, in); err != nil {
			return err
		}
		if err := st.awaitAnswers(ctx); err != nil {
			return err
		}
	}
}

// awaitAnswers stops reading from a client that does not take the answers to its commands.
func (st *stream) awaitAnswers(ctx context.Context) error {
	for st.one.Backlogged() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (st *stream) command(ctx context.Context, r *runnelv1.StreamRequest, in *intake) error {
	var err error
	switch c := r.GetRequest().(type) {
	case *runnelv1.StreamRequest_Publish:
		return in.put(ctx, r.GetRequestId(), c.Publish)
	case *runnelv1.StreamRequest_Subscribe:
		err = st.subscribe(ctx, r.GetRequestId(), c.Subscribe)
	case *runnelv1.StreamRequest_Unsubscribe:
		err = st.one.Unsubscribe(r.GetRequestId(), c.Unsubscribe.GetSubscription())
	case *runnelv1.StreamRequest_Credit:
		if c.Credit.GetEvents() == 0 {
			err = &broker.InvalidError{Field: "credit.events", Reason: "it is 0; return at least one"}
			break
		}
		st.one.Credit(c.Credit.GetSubscription(), c.Credit.GetEvents())
	case *runnelv1.StreamRequest_Heartbeat:
	case *runnelv1.StreamRequest_RefreshToken:
		err = st.refresh(ctx, r.GetRequestId(), c.RefreshToken.GetToken())
	default:
		err = &broker.InvalidError{Field: "request", Reason: "it is empty, or of a kind this server does not know"}
	}
	if err != nil {
		st.commandError(r.GetRequestId(), err)
	}
	return nil
}

// commit appends a batch of publishes and answers each.
func (st *stream) commit(ctx context.Context, batch []pending) {
	requests := make([]*runnelv1.PublishRequest, len(batch))
	for i, p := range batch {
		requests[i] = p.publish
	}
	for i, out := range st.s.broker.Publish(ctx, st.by.who(), requests, false) {
		if out.Err != nil {
			st.commandError(batch[i].request, out.Err)
			continue
		}
		st.one.Control(&runnelv1.Control{RequestId: batch[i].request, Control: &runnelv1.Control_Published{
			Published: &runnelv1.Published{Results: []*runnelv1.PublishResponse{out.Response}},
		}})
	}
}

func (st *stream) commandError(request uint64, err error) {
	st.by.denied(err)
	st.errors.Add(1)
	reason := reasonOf(err)
	st.lastError.Store(&reason)
	clone, _ := proto.Clone(st.s.status(st.by, err).Proto()).(*spb.Status)
	st.one.Control(&runnelv1.Control{RequestId: request, Control: &runnelv1.Control_CommandError{
		CommandError: &runnelv1.CommandError{Status: clone},
	}})
}
