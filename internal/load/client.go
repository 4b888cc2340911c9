package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// dial opens a connection that costs the client little: windows that do not grow, messages that are not decoded.
func (o *Options) dial() (*grpc.ClientConn, error) {
	calls := []grpc.CallOption{grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(16 << 20)}
	if o.Compression != "" {
		calls = append(calls, grpc.UseCompressor(o.Compression))
	}
	return grpc.NewClient(o.Target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(1<<20), grpc.WithStaticConnWindowSize(1<<20),
		grpc.WithDefaultCallOptions(calls...))
}

func (o *Options) outgoing(ctx context.Context) context.Context {
	if o.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+o.Token)
	}
	return ctx
}

// connectTimeout is how long a server may take to answer first.
const connectTimeout = 5 * time.Second

// UnreachableError says why nobody answers.
type UnreachableError struct{ Cause string }

func (e *UnreachableError) Error() string { return "cannot reach the server: " + e.Cause }

// check says in one line what is wrong with the server, if it cannot be used: nobody there, or not a Runnel server.
func (o *Options) check(ctx context.Context) error {
	conn, err := o.dial()
	if err != nil {
		return fmt.Errorf("bad server address %q: %w", o.Target, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(o.outgoing(ctx), connectTimeout)
	defer cancel()
	_, err = runnelv1.NewStreamServiceClient(conn).GetTopic(ctx, &runnelv1.GetTopicRequest{Topic: o.Topic})
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.Unimplemented:
		return fmt.Errorf("%s is not a Runnel server: it does not know %s", o.Target, runnelv1.StreamService_ServiceDesc.ServiceName)
	case codes.Unavailable:
		return &UnreachableError{status.Convert(err).Message()}
	case codes.DeadlineExceeded:
		return fmt.Errorf("no Runnel server answers at %s within %v", o.Target, connectTimeout)
	}
	return fmt.Errorf("%s: %s", o.Target, status.Convert(err).Message())
}

// sink takes what subscribers receive. Each subscriber has one of its own, for one goroutine.
type sink struct {
	r      *run
	shard  *Shard
	delays []time.Duration
	seen   int64
}

// got notes events that came, given their payloads one by one, and how many a notice accounts for.
func (s *sink) got(events int, noticed int64) {
	s.shard.Record(s.delays...)
	s.delays = s.delays[:0]
	s.r.delivered.Add(int64(events))
	s.r.noticed.Add(noticed)
	s.seen += int64(events) + noticed
	if w := s.r.window; w != nil {
		w.Delivered(events + int(noticed))
	}
}

// subscribe follows a topic until ctx ends; ready is called once the server has accepted it.
func (r *run) subscribe(ctx context.Context, conn *grpc.ClientConn, topic string, s *sink, ready func(), done func(*sink) bool) error {
	if r.o.SDK {
		return r.subscribeSDK(ctx, topic, s, ready, done)
	}
	stream, err := runnelv1.NewStreamServiceClient(conn).Subscribe(r.o.outgoing(ctx), r.request(topic))
	if err != nil {
		return ended(ctx, err)
	}
	var m raw
	var t tally
	now := time.Duration(0)
	payload := func(p []byte) { s.delays = append(s.delays, sinceStamp(p, now)) }
	for accepted := false; ; {
		if err := stream.RecvMsg(&m); err != nil {
			return ended(ctx, err)
		}
		now = time.Since(began)
		if err := t.scan(m.b, payload); err != nil {
			return err
		}
		for _, c := range t.controls {
			if c.GetSubscribed() != nil && !accepted {
				accepted = true
				ready()
			}
		}
		if s.got(t.events, t.noticed); done != nil && done(s) {
			return nil
		}
	}
}

func (r *run) request(topic string) *runnelv1.SubscribeRequest {
	s := &runnelv1.Subscription{Pattern: topic}
	if r.earliest {
		s.Start = &runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{Earliest: &emptypb.Empty{}}}
	}
	return &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{s}}
}

// subscribeSDK is subscribe with the Go SDK, as an application would.
func (r *run) subscribeSDK(ctx context.Context, topic string, s *sink, ready func(), done func(*sink) bool) error {
	start := runnel.New()
	if r.earliest {
		start = runnel.Earliest()
	}
	client, err := runnel.Dial(r.o.Target, runnel.WithToken(r.o.Token), runnel.WithCompression(r.o.Compression))
	if err != nil {
		return err
	}
	defer client.Close()
	sub, err := client.Subscribe(ctx, topic, runnel.From(start))
	if err != nil {
		return ended(ctx, err)
	}
	ready()
	for ev, err := range sub.Events(ctx) {
		var e *runnel.Error
		switch {
		case errors.As(err, &e) && e.Notice != nil:
			s.got(0, int64(e.Notice.Count))
		case err != nil:
			return ended(ctx, err)
		default:
			s.delays = append(s.delays, sinceStamp(ev.Payload, time.Since(began)))
			s.got(1, 0)
		}
		if done != nil && done(s) {
			return nil
		}
	}
	return ended(ctx, ctx.Err())
}

// ended is nil if the stream has ended because the measurement has.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// publisher sends events in bulk.
type publisher struct {
	stream  grpc.ClientStream
	payload []byte
	topics  []string
	next    int
	buf     []byte
}

func (r *run) publisher(ctx context.Context, conn *grpc.ClientConn, topics []string) (*publisher, error) {
	stream, err := conn.NewStream(r.o.outgoing(ctx), &runnelv1.StreamService_ServiceDesc.Streams[0], runnelv1.StreamService_PublishStream_FullMethodName)
	if err != nil {
		return nil, err
	}
	return &publisher{stream: stream, payload: make([]byte, r.o.Payload), topics: topics}, nil
}

// publish sends one event, due at t, to the next topic in turn.
func (p *publisher) publish(t time.Time) error {
	Stamp(p.payload, t)
	p.buf = appendPublish(nil, p.topics[p.next], p.payload)
	p.next = (p.next + 1) % len(p.topics)
	err := p.stream.SendMsg(&raw{p.buf})
	if errors.Is(err, io.EOF) { // the server has ended the stream: it says why to who receives
		err = p.stream.RecvMsg(new(runnelv1.PublishSummary))
	}
	return err
}

// close waits for the last acknowledgement.
func (p *publisher) close() error {
	if err := p.stream.CloseSend(); err != nil {
		return err
	}
	return p.stream.RecvMsg(new(runnelv1.PublishSummary))
}
