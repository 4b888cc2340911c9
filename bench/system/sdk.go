package system

import (
	"context"
	"errors"
	"sync"

	natsgo "github.com/nats-io/nats.go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
)

// runnelSDK receives with Runnel's own Go client.
func runnelSDK() *System {
	s := runnelServer("runnel-sdk", "none")
	s.Help, s.Client = "Runnel, received with its Go SDK", runnelClient
	return s
}

func runnelClient(ctx context.Context, address, topic string, to wire.Events) (func() error, error) {
	c, err := runnel.Dial(address)
	if err != nil {
		return nil, err
	}
	sub, err := c.Subscribe(ctx, topic)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	to.Ready()
	var group sync.WaitGroup
	group.Go(func() {
		for {
			ev, err := sub.Next(ctx)
			var notice *runnel.Error
			switch {
			case err == nil:
				to.Event(ev.Payload)
			case errors.As(err, &notice) && !notice.Terminal() && notice.Notice != nil:
				to.Noticed(int(notice.Notice.Count))
			case errors.Is(err, runnel.ErrClosed):
				return
			default:
				if ctx.Err() == nil {
					fail(to, err)
				}
				return
			}
		}
	})
	return func() error { sub.Close(); group.Wait(); return c.Close() }, nil
}

// runnelGenerated receives with what protoc generates, as any language can, and grpc-go as it comes.
func runnelGenerated() *System {
	s := runnelServer("runnel-generated", "none")
	s.Help = "Runnel, received with the generated grpc-go client"
	s.Client = func(ctx context.Context, address, topic string, to wire.Events) (func() error, error) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		stream, err := runnelv1.NewStreamServiceClient(conn).Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: topic}}})
		if err != nil {
			cancel()
			return nil, errors.Join(err, conn.Close())
		}
		return following(ctx, cancel, conn, to, func() error {
			m, err := stream.Recv()
			for _, c := range m.GetControls() {
				if c.GetSubscribed() != nil {
					to.Ready()
				}
				if n := c.GetNotice().GetCount(); n > 0 {
					to.Noticed(int(n))
				}
			}
			for _, d := range m.GetDeliveries() {
				for _, ev := range d.GetEvents() {
					to.Event(ev.GetPayload())
				}
			}
			return err
		}), nil
	}
	return s
}

// textbookSDK receives from the textbook server as the textbook says.
func textbookSDK() *System {
	s := textbook()
	s.Name, s.Help = "textbook-sdk", "textbook, received with grpc-go"
	s.Client = func(ctx context.Context, address, topic string, to wire.Events) (func() error, error) {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		stream, err := conn.NewStream(ctx, &textbookService.Streams[0], "/bench.Textbook/Subscribe")
		if err == nil {
			err = errors.Join(stream.SendMsg(&runnelv1.Event{Topic: topic}), stream.CloseSend())
		}
		if err == nil {
			_, err = stream.Header()
		}
		if err != nil {
			cancel()
			return nil, errors.Join(err, conn.Close())
		}
		to.Ready()
		return following(ctx, cancel, conn, to, func() error {
			ev := new(runnelv1.Event)
			if err := stream.RecvMsg(ev); err != nil {
				return err
			}
			to.Event(ev.GetPayload())
			return nil
		}), nil
	}
	return s
}

// following receives in a goroutine until the function that it returns is called.
func following(ctx context.Context, cancel context.CancelFunc, conn *grpc.ClientConn, to wire.Events, receive func() error) func() error {
	var group sync.WaitGroup
	group.Go(func() {
		for {
			if err := receive(); err != nil {
				if ctx.Err() == nil {
					fail(to, err)
				}
				return
			}
		}
	})
	return func() error { cancel(); group.Wait(); return conn.Close() }
}

// natsSDK receives with nats.go.
func natsSDK() *System {
	s := nats()
	s.Name, s.Help = "nats-sdk", "NATS core, received with nats.go"
	s.Client = func(_ context.Context, address, topic string, to wire.Events) (func() error, error) {
		c, err := natsgo.Connect("nats://"+address, natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { fail(to, err) }))
		if err != nil {
			return nil, err
		}
		_, err = c.Subscribe(topic, func(m *natsgo.Msg) { to.Event(m.Data) })
		if err == nil {
			err = c.Flush() // answered: the subscription stands
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		to.Ready()
		return func() error { c.Close(); return nil }, nil
	}
	return s
}
