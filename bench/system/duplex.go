package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
)

// duplex is one bidirectional stream of grpc-go that publishes and receives: what is compared with a bare echo must be measured by the
// same client.
type duplex struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	cancel context.CancelFunc
	encode func(b []byte, topic string, payload []byte) ([]byte, error)
	group  sync.WaitGroup
}

var duplexDesc = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// newDuplex opens a stream and sends first, if there is something. Each message that comes goes to read.
func newDuplex(ctx context.Context, address, method string, first []byte, encode func([]byte, string, []byte) ([]byte, error),
	read func(wire.Events, []byte) error, to wire.Events) (Publisher, error) {
	conn, err := dialRaw(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	d := &duplex{conn: conn, cancel: cancel, encode: encode}
	if d.stream, err = conn.NewStream(ctx, duplexDesc, method); err == nil && first != nil {
		err = d.stream.SendMsg(first)
	}
	if err == nil {
		_, err = d.stream.Header()
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, conn.Close())
	}
	if first == nil {
		to.Ready() // there is nothing to subscribe to
	}
	d.group.Go(func() {
		if err := receiveAll(d.stream, read, to); ctx.Err() == nil {
			fail(to, err)
		}
	})
	return d, nil
}

// dialRaw connects as a client that has set its windows, as the Go SDK does, and that sends and takes encoded messages.
func dialRaw(address string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	const window = 1 << 20
	return grpc.NewClient(address, append(more, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))...)
}

// receiveAll returns what has ended the stream.
func receiveAll(stream grpc.ClientStream, read func(wire.Events, []byte) error, to wire.Events) error {
	for {
		var b []byte
		if err := stream.RecvMsg(&b); err != nil {
			return err
		}
		if err := read(to, b); err != nil {
			return err
		}
	}
}

// fail tells whoever measures, if it listens.
func fail(to wire.Events, err error) {
	if f, ok := to.(interface{ Fail(error) }); ok {
		f.Fail(fmt.Errorf("receiving: %w", err))
	}
}

// Publish implements Publisher.
func (d *duplex) Publish(topic string, payload []byte) error {
	b, err := d.encode(nil, topic, payload)
	if err != nil {
		return err
	}
	if err = d.stream.SendMsg(b); errors.Is(err, io.EOF) {
		return errors.New("the server has ended the stream")
	}
	return err
}

// Flush implements Publisher: grpc-go sends by itself.
func (d *duplex) Flush() error { return nil }

// Close implements Publisher.
func (d *duplex) Close() error {
	d.cancel()
	d.group.Wait()
	return d.conn.Close()
}

// encoded is a message that can be encoded for sure.
func encoded(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// sessionPublish encodes a command of a session.
func sessionPublish(b []byte, topic string, payload []byte) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, &runnelv1.StreamRequest{
		Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: topic, Payload: payload}}})
}

// sessionSubscribe is the first command of a subscriber's session.
func sessionSubscribe(topic string) []byte {
	return encoded(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Pattern: topic}}})
}
