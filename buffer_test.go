package runnel_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Without a connection a full buffer does what it was told to, and what is in it is sent when there is one again.
func TestPublishBuffer(t *testing.T) {
	for name, policy := range map[string]runnel.WhenFull{"wait": runnel.BufferWait, "fail": runnel.BufferFail, "drop": runnel.BufferDropOldest} {
		t.Run(name, func(t *testing.T) {
			var d diary
			s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
				n := d.next()
				if n > 1 && n < 6 {
					return status.Error(codes.Unavailable, "away")
				}
				if err := welcome(g); err != nil {
					return err
				}
				if n == 1 {
					return status.Error(codes.Unavailable, "cut")
				}
				return d.serve(g, 2, 0, nil)
			}}
			play(t, s, func(t *testing.T, c *runnel.Client) {
				gone := make(chan struct{}, 100)
				session, err := c.Session(t.Context(), runnel.PublishBuffer(4, 1<<20, policy), runnel.OnState(func(s runnel.State) {
					if s == runnel.StateConnecting {
						gone <- struct{}{}
					}
				}))
				if err != nil {
					t.Fatal(err)
				}
				<-gone
				<-gone
				began := time.Now()
				var receipts []*runnel.Receipt
				var refused error
				for i := range 6 {
					r, err := session.Publish(t.Context(), "a.b", nil, runnel.ID(fmt.Sprint(i)))
					if err != nil {
						refused = err
						break
					}
					receipts = append(receipts, r)
				}
				waited := time.Since(began) > 0
				var lost []int
				for i, r := range receipts {
					if _, err := r.Wait(t.Context()); errors.Is(err, runnel.ErrDropped) {
						lost = append(lost, i)
					} else if err != nil {
						t.Error(err)
					}
				}
				var sent []string
				for _, line := range d.read() {
					if id := ""; len(line) > 10 && line[:10] == "2 publish " {
						id = line[10:]
						sent = append(sent, id)
					}
				}
				want := map[string]struct {
					waited bool
					err    error
					sent   []string
					lost   []int
				}{
					"wait": {true, nil, []string{"0", "1", "2", "3", "4", "5"}, nil},
					"fail": {false, runnel.ErrBufferFull, []string{"0", "1", "2", "3"}, nil},
					"drop": {false, nil, []string{"2", "3", "4", "5"}, []int{0, 1}},
				}[name]
				if waited != want.waited || !errors.Is(refused, want.err) || !slices.Equal(sent, want.sent) || !slices.Equal(lost, want.lost) {
					t.Errorf("waited %v, refused %v, sent %v, lost %v", waited, refused, sent, lost)
				}
			})
		})
	}
}

// A session whose subscriptions fall behind says so, once, and when all have caught up or are closed.
func TestStateBehind(t *testing.T) {
	notice := func(sub uint32, kind runnelv1.NoticeKind) *runnelv1.Control {
		return &runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: &runnelv1.Notice{Subscription: sub, Kind: kind}}}
	}
	const behind, caughtUp = runnelv1.NoticeKind_NOTICE_KIND_BEHIND, runnelv1.NoticeKind_NOTICE_KIND_CAUGHT_UP
	step := make(chan []*runnelv1.Control)
	s := &script{establish: func(g runnelv1.StreamService_EstablishStreamServer) error {
		if err := welcome(g); err != nil {
			return err
		}
		for range 2 {
			r, err := g.Recv()
			if err != nil {
				return err
			}
			if err := g.Send(&runnelv1.StreamResponse{Controls: []*runnelv1.Control{{RequestId: r.GetRequestId(), Control: &runnelv1.Control_Subscribed{
				Subscribed: &runnelv1.Subscribed{Subscription: r.GetSubscribe().GetId(), Position: &runnelv1.Position{Epoch: anEpoch, Offset: 4}},
			}}}}); err != nil {
				return err
			}
		}
		for {
			select {
			case controls := <-step:
				if err := g.Send(&runnelv1.StreamResponse{Controls: controls}); err != nil {
					return err
				}
			case <-g.Context().Done():
				return nil
			}
		}
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		step = make(chan []*runnelv1.Control)
		states := make(chan runnel.State, 100)
		session, err := c.Session(t.Context(), runnel.OnState(func(s runnel.State) { states <- s }))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := session.Subscribe(t.Context(), "a.>"); err != nil {
				t.Fatal(err)
			}
		}
		step <- []*runnelv1.Control{notice(1, behind), notice(2, behind)}
		step <- []*runnelv1.Control{notice(1, caughtUp)}
		step <- []*runnelv1.Control{{Control: &runnelv1.Control_Unsubscribed{Unsubscribed: &runnelv1.Unsubscribed{Subscription: 2, Status: status.New(codes.OutOfRange, "x").Proto()}}}}
		for i, want := range []runnel.State{runnel.StateConnecting, runnel.StateLive, runnel.StateBehind, runnel.StateLive} {
			if got := <-states; got != want {
				t.Errorf("state %d is %s, want %s", i, got, want)
			}
		}
		if len(states) > 0 {
			t.Errorf("and then %s", <-states)
		}
	})
}
