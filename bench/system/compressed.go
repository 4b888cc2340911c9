package system

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
	"github.com/runnelhq/runnel/internal/compress"
)

// Identity is the compression that is none.
const Identity = "identity"

// compressed is Runnel followed by grpc-go clients that ask for a coding, count what comes on the wire, and read no more of the events
// than the light client does.
func compressed(coding string) *System {
	s := runnelServer("runnel-"+coding, "none")
	s.Help, s.Compression = "Runnel, received compressed with "+coding, coding
	var options []grpc.CallOption
	switch coding {
	case Identity:
		s.Help = "Runnel, received uncompressed by the same client as the next"
	case compress.Gzip, compress.Zstd:
		options = append(options, grpc.UseCompressor(coding))
	}
	s.Client = func(ctx context.Context, address, topic string, to wire.Events) (func() error, error) {
		conn, err := dialRaw(address, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", address)
			return counted{c, to}, err
		}))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		stream, err := conn.NewStream(ctx, &runnelv1.StreamService_ServiceDesc.Streams[1], runnelv1.StreamService_Subscribe_FullMethodName, options...)
		if err == nil {
			request := &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: topic}}}
			err = errors.Join(stream.SendMsg(encoded(request)), stream.CloseSend())
		}
		if err != nil {
			cancel()
			return nil, errors.Join(err, conn.Close())
		}
		return following(ctx, cancel, conn, to, func() error {
			var b []byte
			if err := stream.RecvMsg(&b); err != nil {
				return err
			}
			return wire.StreamResponse(to, b)
		}), nil
	}
	return s
}

// counted is a connection that tells how many bytes come.
type counted struct {
	net.Conn
	to wire.Events
}

// Read implements net.Conn.
func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if r, ok := c.to.(interface{ Received(n int) }); ok {
		r.Received(n)
	}
	return n, err
}
