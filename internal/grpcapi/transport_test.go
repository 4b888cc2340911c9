package grpcapi

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/wire"
)

// filler is a Subscribe that sends as much as its writer allows without blocking, and says so.
type filler struct {
	runnelv1.UnimplementedStreamServiceServer
	full  chan *writer
	ended chan struct{}
}

func (f *filler) Subscribe(_ *runnelv1.SubscribeRequest, g runnelv1.StreamService_SubscribeServer) error {
	defer close(f.ended)
	w := newWriter(g, rpcSubscribe, func() {})
	event := wire.AppendElement(nil, make([]byte, 0))
	for len(event) < 3000 {
		event = append(event, wire.AppendElement(nil, nil)...)
	}
	for !w.full() {
		header := wire.AppendDeliveryHeader(nil, 1, len(event))
		p := newParcel()
		p.frame.Add(header, nil)
		p.frame.Add(event, nil)
		if err := w.send(p); err != nil {
			return err
		}
		// What the client's window takes leaves at once; only what stays counts.
		if w.outstanding.Load() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	f.full <- w
	<-g.Context().Done()
	return nil
}

// The writer rests on an order inside grpc-go that is not documented: an empty buffer of our own behind a message is given back after
// the message was written and its bytes returned to the stream's quota. If an upgrade of grpc-go changes that, this test fails: sends
// would block although the writer is not full, or what has left would never be known.
func TestWriterQuota(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &filler{full: make(chan *writer, 1), ended: make(chan struct{})}
	s := grpc.NewServer(grpc.ForceServerCodecV2(Codec(func(string, int) {}, new(Sent))))
	runnelv1.RegisterStreamServiceServer(s, f)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := runnelv1.NewStreamServiceClient(conn).Subscribe(ctx, &runnelv1.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// The client does not read. The handler must come to a full writer without being blocked in a send.
	var w *writer
	select {
	case w = <-f.full:
	case <-ctx.Done():
		t.Fatal("a send has blocked although the writer was not full, or the writer never was")
	}
	held := w.outstanding.Load()
	if held < quota || held > 2*quota {
		t.Errorf("%d bytes are outstanding", held)
	}
	// The client reads: what was held leaves, and the writer learns of it.
	for w.outstanding.Load() > 0 {
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("%d bytes are outstanding: %v", w.outstanding.Load(), err)
		}
	}
	cancel()
	<-f.ended
}

// What died with its connection is given back at once: many connections can die before anybody would look.
func TestBuryDead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	b := budget.New(1 << 30)
	g := graves{budget: b}
	defer g.close()
	w := newWriter(&headers{}, rpcSubscribe, func() {})
	p := newParcel()
	p.frame.Add(make([]byte, 1000), b.ForcedBlock(budget.Pages, 1000))
	if err := w.send(p); err != nil {
		t.Fatal(err)
	}
	g.bury(&connection{conn: conn}, w)
	if n := b.Used(budget.Pages); n != 0 {
		t.Errorf("%d bytes are held for a connection that is gone", n)
	}
}

// torrent is a server whose Subscribe sends until it cannot.
type torrent struct {
	runnelv1.UnimplementedStreamServiceServer
	graves *graves
	budget *budget.Budget
	buried chan *writer
}

func (s *torrent) Subscribe(_ *runnelv1.SubscribeRequest, g runnelv1.StreamService_SubscribeServer) error {
	w := newWriter(g, rpcSubscribe, func() {})
	defer func() {
		s.graves.bury(connectionOf(g.Context()), w)
		s.buried <- w
	}()
	if err := g.SendHeader(nil); err != nil {
		return err
	}
	for g.Context().Err() == nil {
		if w.full() {
			runtime.Gosched()
			continue
		}
		p := newParcel()
		p.frame.Add(nil, s.budget.ForcedBlock(budget.Pages, 1000))
		if err := w.send(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *torrent) GetTopic(context.Context, *runnelv1.GetTopicRequest) (*runnelv1.Topic, error) {
	return &runnelv1.Topic{}, nil
}

// What grpc-go is given in the moment of a client's reset it neither sends nor gives back. That is no stuck client: the connection stays,
// and what the frame was counted as is given back all the same.
func TestBuryReset(t *testing.T) {
	b := budget.New(1 << 30)
	g := graves{budget: b}
	defer g.close()
	api := &torrent{graves: &g, budget: b, buried: make(chan *writer, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(Codec(func(string, int) {}, new(Sent))), grpc.Creds(NewGate(insecure.NewCredentials(), GateConfig{})))
	runnelv1.RegisterStreamServiceServer(s, api)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := runnelv1.NewStreamServiceClient(conn)
	// About one reset in six hits that moment.
	var w *writer
	for try := 0; ; try++ {
		if try == 1000 {
			t.Fatal("no reset has hit the moment: perhaps grpc-go gives everything back now, and writer.loosen may go")
		}
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.Subscribe(ctx, &runnelv1.SubscribeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		cancel()
		w = <-api.buried
		// The answer to a later call says that grpc-go has dealt with everything before.
		if _, err := c.GetTopic(t.Context(), &runnelv1.GetTopicRequest{}); err != nil {
			t.Fatal(err)
		}
		if w.outstanding.Load() != 0 {
			break
		}
	}
	g.mu.Lock()
	var all []*grave
	for dead := range g.all {
		dead.ended = time.Now().Add(-time.Hour)
		all = append(all, dead)
	}
	g.mu.Unlock()
	for _, dead := range all {
		g.look(dead)
	}
	if _, err := c.GetTopic(t.Context(), &runnelv1.GetTopicRequest{}); err != nil {
		t.Fatalf("the connection did not stay: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); w.outstanding.Load() != 0 || b.Used(budget.Pages) != 0; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are outstanding, %d counted", w.outstanding.Load(), b.Used(budget.Pages))
		}
	}
}

// Whatever is in the table is a row of its own: no error has two meanings.
func TestErrorTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table {
		if r.reason != "DRAINING" && seen[r.reason] {
			t.Errorf("reason %s stands twice", r.reason)
		}
		seen[r.reason] = true
	}
	if s := statusOf(net.ErrClosed); s.Message() != "internal error" {
		t.Errorf("an error that is not in the table is shown to clients: %s", s.Message())
	}
}
