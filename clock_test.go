package runnel_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// pipes is a listener and a dialer without a network: the whole of grpc-go runs in virtual time on it.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(ctx context.Context, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// script is a server whose answers a test writes.
type script struct {
	runnelv1.UnimplementedStreamServiceServer
	publish   func(*runnelv1.PublishRequest) (*runnelv1.PublishResponse, error)
	establish func(runnelv1.StreamService_EstablishStreamServer) error
}

func (s *script) Publish(_ context.Context, r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
	return s.publish(r)
}

func (s *script) EstablishStream(g runnelv1.StreamService_EstablishStreamServer) error {
	return s.establish(g)
}

// play runs f in virtual time with a client of the script.
func play(t *testing.T, s *script, f func(t *testing.T, c *runnel.Client)) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		g := grpc.NewServer()
		runnelv1.RegisterStreamServiceServer(g, s)
		var group sync.WaitGroup
		group.Go(func() { g.Serve(p) })
		c, err := runnel.Dial("passthrough:///pipe", runnel.WithDialOptions(grpc.WithContextDialer(p.dial)), runnel.WithConnectTimeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		f(t, c)
		c.Close()
		g.Stop()
		group.Wait()
	})
}

func welcome(g runnelv1.StreamService_EstablishStreamServer) error {
	return g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{{Control: &runnelv1.Control_Welcome{Welcome: &runnelv1.Welcome{}}}}})
}

// A publish whose outcome is unknown is sent again with the same id; a refusal is not.
func TestPublishRetriesWithTheSameID(t *testing.T) {
	var ids []string
	s := &script{publish: func(r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
		if r.GetTopic() == "a.refused" {
			return nil, status.Error(codes.InvalidArgument, "no")
		}
		if ids = append(ids, r.GetEventId()); len(ids) < 4 {
			return nil, status.Error(codes.Unavailable, "away")
		}
		return &runnelv1.PublishResponse{EventId: r.GetEventId(), Offset: 7}, nil
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		ack, err := c.Publish(t.Context(), "a.b", nil)
		if err != nil || ack.Position.Offset != 7 {
			t.Fatalf("%+v, %v", ack, err)
		}
		for _, id := range ids {
			if id == "" || id != ids[0] || id != ack.ID {
				t.Errorf("ids %q", ids)
			}
		}
		began := time.Now()
		if _, err := c.Publish(t.Context(), "a.refused", nil); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a refusal was retried for %v", waited)
		}
	})
}

// A server that falls silent is given up after 35 s, and the subscription resumes behind what it has received.
func TestSilentServer(t *testing.T) {
	const epoch = "0123456789abcdef"
	var streams int
	var resumed *runnelv1.Position
	var heartbeats int
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		streams++
		if err := welcome(g); err != nil {
			return err
		}
		for {
			r, err := g.Recv()
			if err != nil {
				return err
			}
			if r.GetHeartbeat() != nil {
				heartbeats++
			}
			sub := r.GetSubscribe()
			if sub == nil {
				continue
			}
			if streams == 2 {
				resumed = sub.GetStart().GetAfter()
			}
			// The second stream brings an event again, as after a crash of the client's own connection.
			m := &runnelv1.StreamResponse{
				Controls:   []*runnelv1.Control{{Control: &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{Subscription: sub.GetId(), Position: &runnelv1.Position{Epoch: epoch, Offset: 4}}}}},
				Deliveries: []*runnelv1.Delivery{{Subscription: sub.GetId(), Events: []*runnelv1.Event{{Offset: 5, Topic: "a.b"}}}},
			}
			if streams == 2 {
				m.Deliveries[0].Events = append(m.Deliveries[0].Events, &runnelv1.Event{Offset: 6, Topic: "a.b"})
			}
			if err := g.Send(m); err != nil {
				return err
			}
		}
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		sub, err := c.Subscribe(t.Context(), "a.>")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for want := uint64(5); want <= 6; want++ {
			e, err := sub.Next(t.Context())
			if err != nil || e.Position.Offset != want {
				t.Fatalf("%+v, %v, want offset %d", e, err, want)
			}
		}
		if waited := time.Since(began); waited < 35*time.Second || waited > 41*time.Second {
			t.Errorf("the dead server was noticed after %v", waited)
		}
		if resumed.GetOffset() != 5 || resumed.GetEpoch() != epoch {
			t.Errorf("resumed at %v", resumed)
		}
		if heartbeats != 2 {
			t.Errorf("%d heartbeats in 35 s", heartbeats)
		}
		if sub.Position() != (runnel.Position{Epoch: epoch, Offset: 6}) {
			t.Errorf("position %v", sub.Position())
		}
	})
}

// What was not acknowledged when the connection broke is sent again, in order and with the same ids.
func TestPublisherSendsAgain(t *testing.T) {
	var first, second []string
	streams := 0
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		streams++
		if err := welcome(g); err != nil {
			return err
		}
		for {
			r, err := g.Recv()
			if err != nil {
				return err
			}
			p := r.GetPublish()
			if p == nil {
				continue
			}
			if streams == 1 {
				if first = append(first, p.GetEventId()); len(first) == 5 {
					return status.Error(codes.Unavailable, "gone")
				}
				if len(first) > 2 {
					continue // stored, perhaps, but not acknowledged
				}
			} else {
				second = append(second, p.GetEventId())
			}
			if err := g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{{RequestId: r.GetRequestId(), Control: &runnelv1.Control_Published{
				Published: &runnelv1.Published{Results: []*runnelv1.PublishResponse{{EventId: p.GetEventId(), Offset: 1}}},
			}}}}); err != nil {
				return err
			}
		}
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		p, err := c.Publisher(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := p.Publish(t.Context(), "a.b", nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(second) != 3 || second[0] != first[2] || second[2] != first[4] {
			t.Errorf("first %q, then %q", first, second)
		}
	})
}

// A subscription that the server refuses for good when it resumes ends with that reason.
func TestRefusedOnResume(t *testing.T) {
	streams := 0
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		streams++
		if err := welcome(g); err != nil {
			return err
		}
		for {
			r, err := g.Recv()
			if err != nil {
				return err
			}
			sub := r.GetSubscribe()
			if sub == nil {
				continue
			}
			c := &runnelv1.Control{RequestId: r.GetRequestId(), Control: &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{Subscription: sub.GetId(), Position: &runnelv1.Position{Epoch: "0123456789abcdef", Offset: 4}}}}
			if streams == 2 {
				st := status.New(codes.OutOfRange, "gone")
				c.Control = &runnelv1.Control_CommandError{CommandError: &runnelv1.CommandError{Status: st.Proto()}}
			}
			if err := g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{c}}); err != nil {
				return err
			}
			if streams == 1 {
				return status.Error(codes.Unavailable, "cut")
			}
		}
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		sub, err := c.Subscribe(t.Context(), "a.>")
		if err != nil {
			t.Fatal(err)
		}
		_, err = sub.Next(t.Context())
		var e *runnel.Error
		if !errors.As(err, &e) || e.Code != codes.OutOfRange || !e.Terminal() {
			t.Errorf("%v", err)
		}
	})
}
