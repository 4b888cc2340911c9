package system

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
)

// textbook is what a team writes first: grpc-go as it is, a bounded channel for each subscriber, and a loop around stream.Send. A
// full channel holds up the publisher.
func textbook() *System {
	return &System{
		Name: "textbook", Help: "grpc-go, a channel per subscriber, stream.Send per event",
		start: own("textbook"),
		Hello: func(topic string) []byte {
			return wire.GRPCCall("/bench.Textbook/Subscribe", encoded(&runnelv1.Event{Topic: topic}))
		},
		Parser: func(string) func(wire.Events) wire.Parser {
			return func(e wire.Events) wire.Parser { return wire.NewGRPC(e, true, wire.Single) }
		},
		Publisher: func(ctx context.Context, address string) (Publisher, error) {
			return newGRPCPublisher(ctx, address, &textbookService.Streams[1], "/bench.Textbook/Publish")
		},
	}
}

// textbookQueue is how many events wait for a subscriber.
const textbookQueue = 1024

type textbookServer struct {
	mu   sync.RWMutex
	subs map[string]map[chan *runnelv1.Event]struct{} // by topic
}

var textbookService = grpc.ServiceDesc{
	ServiceName: "bench.Textbook", HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "Subscribe", ServerStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
			return srv.(*textbookServer).subscribe(stream)
		}},
		{StreamName: "Publish", ClientStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
			return srv.(*textbookServer).publish(stream)
		}},
	},
}

func (t *textbookServer) subscribe(stream grpc.ServerStream) error {
	request := new(runnelv1.Event)
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	ch := make(chan *runnelv1.Event, textbookQueue)
	t.mu.Lock()
	if t.subs[request.GetTopic()] == nil {
		t.subs[request.GetTopic()] = map[chan *runnelv1.Event]struct{}{}
	}
	t.subs[request.GetTopic()][ch] = struct{}{}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.subs[request.GetTopic()], ch)
		t.mu.Unlock()
	}()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case ev := <-ch:
			if err := stream.SendMsg(ev); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (t *textbookServer) publish(stream grpc.ServerStream) error {
	for {
		r := new(runnelv1.PublishRequest)
		if err := stream.RecvMsg(r); err != nil {
			if errors.Is(err, io.EOF) {
				return stream.SendMsg(new(runnelv1.PublishSummary))
			}
			return err
		}
		ev := &runnelv1.Event{Topic: r.GetTopic(), Payload: r.GetPayload()}
		t.mu.RLock()
		for ch := range t.subs[ev.GetTopic()] {
			ch <- ev
		}
		t.mu.RUnlock()
	}
}

func init() {
	servers["textbook"] = func(ctx context.Context) (string, func() error, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		s := grpc.NewServer()
		s.RegisterService(&textbookService, &textbookServer{subs: map[string]map[chan *runnelv1.Event]struct{}{}})
		context.AfterFunc(ctx, s.Stop)
		return serveGRPC(l, s)
	}
}

func serveGRPC(l net.Listener, s *grpc.Server) (string, func() error, error) {
	var group sync.WaitGroup
	var err error
	group.Go(func() { err = s.Serve(l) })
	return l.Addr().String(), func() error { group.Wait(); return err }, nil
}
