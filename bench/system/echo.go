package system

import (
	"context"
	"errors"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
)

// grpcEcho is grpc-go with nothing behind it: a stream that sends back what comes, and a call that answers at once. It is the floor of
// the scenarios echo and publish, and takes part in no other.
func grpcEcho() *System {
	return &System{
		Name: "grpc-echo", Help: "grpc-go that only answers: the floor of echo and publish",
		start: own("grpc-echo"),
		Duplex: func(ctx context.Context, address, _ string, to wire.Events) (Publisher, error) {
			return newDuplex(ctx, address, "/bench.Echo/Echo", nil, appendEvent, wire.Single, to)
		},
		Acked: ackedCall("/bench.Echo/Publish"),
	}
}

var echoService = grpc.ServiceDesc{
	ServiceName: "bench.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Publish", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(new(runnelv1.PublishRequest)); err != nil {
			return nil, err
		}
		return new(runnelv1.PublishResponse), nil
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Echo", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendHeader(nil); err != nil {
			return err
		}
		for {
			ev := new(runnelv1.Event)
			switch err := stream.RecvMsg(ev); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := stream.SendMsg(ev); err != nil {
				return err
			}
		}
	}}},
}

func init() {
	servers["grpc-echo"] = func(ctx context.Context) (string, func() error, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		s := grpc.NewServer()
		s.RegisterService(&echoService, nil)
		context.AfterFunc(ctx, s.Stop)
		return serveGRPC(l, s)
	}
}

// appendEvent encodes a runnel.v1.Event.
func appendEvent(b []byte, topic string, payload []byte) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, &runnelv1.Event{Topic: topic, Payload: payload})
}

// ackedCall publishes by a unary call that takes a PublishRequest, on one connection for all.
func ackedCall(method string) func(context.Context, string) (Acked, error) {
	return func(_ context.Context, address string) (Acked, error) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return Acked{}, err
		}
		return Acked{
			Publish: func(ctx context.Context, topic string, payload []byte) error {
				return conn.Invoke(ctx, method, &runnelv1.PublishRequest{Topic: topic, Payload: payload}, new(runnelv1.PublishResponse))
			},
			Close: conn.Close,
		}, nil
	}
}
