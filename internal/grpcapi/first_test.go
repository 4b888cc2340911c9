package grpcapi

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// patient answers Subscribe once the call is over, and everything else at once.
type patient struct {
	runnelv1.UnimplementedStreamServiceServer
}

func (patient) Subscribe(_ *runnelv1.SubscribeRequest, g runnelv1.StreamService_SubscribeServer) error {
	<-g.Context().Done()
	return g.Context().Err()
}

func (patient) EstablishStream(g runnelv1.StreamService_EstablishStreamServer) error {
	<-g.Context().Done()
	return g.Context().Err()
}

// Calls whose message never comes are over; those whose message came, and sessions, which may begin with silence, go on.
func TestFirstMessage(t *testing.T) {
	t.Parallel()
	const within = time.Second
	guard := NewGuard(GuardConfig{})
	s := grpc.NewServer(grpc.InTapHandle(First(within)), grpc.UnaryInterceptor(guard.Unary), grpc.StreamInterceptor(guard.Stream))
	runnelv1.RegisterStreamServiceServer(s, patient{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) }) // ends with Stop
	defer serving.Wait()
	defer s.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ended := func(method string, send bool, streams bool) error {
		ctx, cancel := context.WithTimeout(t.Context(), 3*within)
		defer cancel()
		g, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: streams, ClientStreams: true}, method)
		if err == nil && send {
			err = errors.Join(g.SendMsg(&runnelv1.SubscribeRequest{}), g.CloseSend())
		}
		if err == nil {
			err = g.RecvMsg(&runnelv1.StreamResponse{})
		}
		if ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded { // the server knows the deadline too
			return context.DeadlineExceeded // it lived longer than the clock
		}
		return err
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range []struct {
		method string
		send   bool
		lives  bool
	}{
		{runnelv1.StreamService_Subscribe_FullMethodName, false, false},
		{runnelv1.StreamService_Subscribe_FullMethodName, true, true},
		{runnelv1.StreamService_Publish_FullMethodName, false, false},
		{runnelv1.StreamService_EstablishStream_FullMethodName, false, true},
	} {
		all.Go(func() {
			err := ended(c.method, c.send, true)
			if lives := errors.Is(err, context.DeadlineExceeded); lives != c.lives || !lives && status.Code(err) != codes.Canceled {
				t.Errorf("%+v: %v", c, err)
			}
		})
	}
}
