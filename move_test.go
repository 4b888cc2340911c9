package runnel_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// diary is what happened to a script's streams, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) next() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n = 1
	for _, l := range d.lines {
		if l == "opened" {
			n++
		}
	}
	d.lines = append(d.lines, "opened")
	return n
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

func drain(g runnelv1.StreamService_EstablishStreamServer, within time.Duration) error {
	return g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{{Control: &runnelv1.Control_Drain{
		Drain: &runnelv1.Drain{WithinMs: uint32(within.Milliseconds()), Endpoints: []string{"passthrough:///other"}, Reason: "test"},
	}}}})
}

func draining() error {
	st, _ := status.New(codes.Unavailable, "stopping").WithDetails(&errdetails.ErrorInfo{Reason: "DRAINING", Domain: "runnel"},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	return st.Err()
}

const anEpoch = "0123456789abcdef"

// serve answers one stream: subscriptions begin at offset 4 or where they say, and every publish is acknowledged after a while.
func (d *diary) serve(g runnelv1.StreamService_EstablishStreamServer, n int, acks time.Duration, then func() error) error {
	defer d.note("%d ended", n)
	for {
		r, err := g.Recv()
		if err != nil {
			return err
		}
		c := &runnelv1.Control{RequestId: r.GetRequestId()}
		var events []*runnelv1.Delivery
		switch {
		case r.GetSubscribe() != nil:
			at := uint64(4)
			if after := r.GetSubscribe().GetStart().GetAfter(); after != nil {
				at = after.GetOffset()
			}
			d.note("%d subscribe after %d", n, at)
			c.Control = &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{Subscription: r.GetSubscribe().GetId(), Position: &runnelv1.Position{Epoch: anEpoch, Offset: at}}}
			events = []*runnelv1.Delivery{{Subscription: r.GetSubscribe().GetId(), Events: []*runnelv1.Event{{Offset: at + 1, Topic: "a.b"}}}}
		case r.GetPublish() != nil:
			d.note("%d publish %s", n, r.GetPublish().GetEventId())
			select {
			case <-time.After(acks):
			case <-g.Context().Done():
				return nil
			}
			c.Control = &runnelv1.Control_Published{Published: &runnelv1.Published{Results: []*runnelv1.PublishResponse{{EventId: r.GetPublish().GetEventId(), Offset: 1}}}}
		default:
			continue
		}
		if err := g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{c}, Deliveries: events}); err != nil {
			return err
		}
		if then != nil {
			if err := then(); err != nil {
				return err
			}
			then = nil
		}
	}
}

// A session that is told to move, with notice, leaves the old stream when the new one stands, and the application sees no pause.
func TestMoves(t *testing.T) {
	var d diary
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		n := d.next()
		if n == 2 {
			return draining() // the first try meets one that is about to stop too
		}
		if err := welcome(g); err != nil {
			return err
		}
		d.note("%d welcomed", n)
		if n == 1 {
			return d.serve(g, n, 0, func() error { return drain(g, 2*time.Second) })
		}
		return d.serve(g, n, 0, nil)
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		var states []runnel.State
		session, err := c.Session(t.Context(), runnel.OnState(func(s runnel.State) { states = append(states, s) }))
		if err != nil {
			t.Fatal(err)
		}
		sub, err := session.Subscribe(t.Context(), "a.>")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for want := uint64(5); want <= 6; want++ {
			if e, err := sub.Next(t.Context()); err != nil || e.Position.Offset != want {
				t.Fatalf("%+v, %v, want %d", e, err, want)
			}
		}
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("the move took %v", waited)
		}
		r, err := session.Publish(t.Context(), "a.b", nil, runnel.ID("p"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		// Once the first has ended at the latest, everything else is known.
		want := []string{"opened", "1 welcomed", "1 subscribe after 4", "opened", "opened", "3 welcomed", "1 ended", "3 subscribe after 5", "3 publish p"}
		got := d.read()
		if i := slices.Index(got, "1 ended"); i >= 0 && i < slices.Index(got, "3 welcomed") {
			t.Errorf("it broke before it made: %q", got)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		if !slices.Equal(states, []runnel.State{runnel.StateConnecting, runnel.StateLive}) {
			t.Errorf("states %v", states)
		}
		if st := c.Stats(); st.Opened != 2 || st.Moved != 1 || st.Broken != 0 || st.Live != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// What was published on the old stream is acknowledged there, and sent nowhere else, if the server gets to it in time.
func TestMoveSettlesPublishes(t *testing.T) {
	for name, acks := range map[string]time.Duration{"in time": 300 * time.Millisecond, "too late": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			var d diary
			s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
				n := d.next()
				if err := welcome(g); err != nil {
					return err
				}
				if n == 2 {
					return d.serve(g, n, 0, nil)
				}
				if err := drain(g, 2*time.Second); err != nil {
					return err
				}
				return d.serve(g, n, acks, nil)
			}}
			play(t, s, func(t *testing.T, c *runnel.Client) {
				session, err := c.Session(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				r, err := session.Publish(t.Context(), "a.b", nil, runnel.ID("one"))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				if r, err = session.Publish(t.Context(), "a.b", nil, runnel.ID("two")); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				twice := slices.Contains(d.read(), "1 publish one") && slices.Contains(d.read(), "2 publish one")
				if twice != (name == "too late") || !slices.Contains(d.read(), "2 publish two") {
					t.Errorf("%q", d.read())
				}
			})
		})
	}
}

// Where there is nothing to move to the session stays to the end of its notice, and then comes back as after any other break.
func TestNowhereToMove(t *testing.T) {
	var d diary
	began := time.Time{}
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		n := d.next()
		if n > 1 && time.Since(began) < 2*time.Second {
			return draining()
		}
		if err := welcome(g); err != nil {
			return err
		}
		if n > 1 {
			return d.serve(g, 2, 0, nil)
		}
		began = time.Now()
		if err := drain(g, 2*time.Second); err != nil {
			return err
		}
		var serving sync.WaitGroup
		serving.Go(func() { d.serve(g, n, 0, nil) }) // to the end of the stream
		time.Sleep(2 * time.Second)
		return draining()
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		var states []runnel.State
		session, err := c.Session(t.Context(), runnel.OnState(func(s runnel.State) { states = append(states, s) }))
		if err != nil {
			t.Fatal(err)
		}
		sub, err := session.Subscribe(t.Context(), "a.>")
		if err != nil {
			t.Fatal(err)
		}
		for want := uint64(5); want <= 6; want++ {
			if e, err := sub.Next(t.Context()); err != nil || e.Position.Offset != want {
				t.Fatalf("%+v, %v, want %d", e, err, want)
			}
		}
		if time.Since(began) < 2*time.Second {
			t.Error("it has left before there was anywhere to go")
		}
		want := []runnel.State{runnel.StateConnecting, runnel.StateLive, runnel.StateConnecting, runnel.StateLive}
		if i := len(states) - 1; i < 3 || !slices.Equal(states[:2], want[:2]) || states[i] != runnel.StateLive {
			t.Errorf("states %v", states)
		}
	})
}
