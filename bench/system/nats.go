package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/runnelhq/runnel/bench/wire"
)

// nats is NATS core as it is, in a process of its own.
func nats() *System {
	return &System{
		Name: "nats", Help: "NATS core",
		start: own("nats"),
		Hello: wire.NATSSubscribe,
		Parser: func(string) func(wire.Events) wire.Parser {
			return func(e wire.Events) wire.Parser { return wire.NewNATS(e) }
		},
		Publisher: func(ctx context.Context, address string) (Publisher, error) {
			return newNATSPublisher(ctx, address)
		},
	}
}

// jetStream stores events in files first, and has a consumer for each subscriber, which reads the stream. The publisher has many on
// their way, each acknowledged. As it comes, JetStream forces files to disk every two minutes; sync makes it do so before each
// acknowledgement.
func jetStream(name, help string) *System {
	s := nats()
	s.Name, s.Help, s.start = name, help, own(name)
	s.Hello = jetStreamSubscribe
	s.Parser = func(string) func(wire.Events) wire.Parser {
		return func(e wire.Events) wire.Parser { return wire.NewJetStream(e) }
	}
	s.Publisher = func(ctx context.Context, address string) (Publisher, error) { return newJetStreamPublisher(address) }
	s.Acked = jetStreamAcked
	return s
}

var consumers atomic.Int64

// jetStreamSubscribe makes a consumer: its events come on subscription 1, the answer to the request on subscription 2.
func jetStreamSubscribe(topic string) []byte {
	n := consumers.Add(1)
	request := fmt.Sprintf(`{"stream_name":"bench","config":{"deliver_subject":"d.%d","filter_subject":"%s","deliver_policy":"new","ack_policy":"none","replay_policy":"instant","mem_storage":true,"num_replicas":1}}`, n, topic)
	return fmt.Appendf(nil, "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1}\r\n"+
		"SUB d.%d 1\r\nSUB i.%d 2\r\nPUB $JS.API.CONSUMER.CREATE.bench i.%d %d\r\n%s\r\n", n, n, n, len(request), request)
}

func natsServer(jetStream, sync bool) func(context.Context) (string, func() error, error) {
	return func(ctx context.Context) (string, func() error, error) {
		o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true}
		dir := ""
		if jetStream {
			var err error
			if dir, err = os.MkdirTemp("", "runnel-bench-nats-"); err != nil {
				return "", nil, err
			}
			o.JetStream, o.StoreDir, o.SyncAlways = true, dir, sync
		}
		s, err := server.NewServer(o)
		if err != nil {
			return "", nil, err
		}
		s.Start()
		if !s.ReadyForConnections(10 * time.Second) {
			return "", nil, errors.New("nats-server is not ready")
		}
		if jetStream {
			if err := addStream(s); err != nil {
				return "", nil, err
			}
		}
		context.AfterFunc(ctx, s.Shutdown)
		return s.Addr().String(), func() error { s.WaitForShutdown(); return os.RemoveAll(dir) }, nil
	}
}

func addStream(s *server.Server) error {
	c, err := natsgo.Connect("", natsgo.InProcessServer(s))
	if err != nil {
		return err
	}
	defer c.Close()
	js, err := c.JetStream()
	if err == nil {
		_, err = js.AddStream(&natsgo.StreamConfig{Name: "bench", Subjects: []string{"bench.>"}})
	}
	return err
}

func init() {
	servers["nats"] = natsServer(false, false)
	servers["jetstream"] = natsServer(true, false)
	servers["jetstream-sync"] = natsServer(true, true)
}

// natsPublisher writes PUB lines.
type natsPublisher struct {
	c net.Conn
	w *bufio.Writer
}

func newNATSPublisher(ctx context.Context, address string) (Publisher, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	p := &natsPublisher{c, bufio.NewWriterSize(c, 64<<10)}
	// INFO comes first, and a PING every two minutes, longer than a measurement: nobody needs to read.
	_, err = p.w.WriteString("CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1}\r\n")
	return p, errors.Join(err, p.w.Flush())
}

// Publish implements Publisher.
func (p *natsPublisher) Publish(topic string, payload []byte) error {
	fmt.Fprintf(p.w, "PUB %s %d\r\n", topic, len(payload))
	p.w.Write(payload)
	_, err := p.w.WriteString("\r\n")
	return err
}

// Flush implements Publisher.
func (p *natsPublisher) Flush() error { return p.w.Flush() }

// Close implements Publisher.
func (p *natsPublisher) Close() error { return errors.Join(p.w.Flush(), p.c.Close()) }

// jetStreamPublisher publishes to a stream, asynchronously.
type jetStreamPublisher struct {
	c  *natsgo.Conn
	js natsgo.JetStreamContext
}

func newJetStreamPublisher(address string) (Publisher, error) {
	c, err := natsgo.Connect("nats://" + address)
	if err != nil {
		return nil, err
	}
	js, err := c.JetStream(natsgo.PublishAsyncMaxPending(4096))
	if err != nil {
		c.Close()
		return nil, err
	}
	return &jetStreamPublisher{c, js}, nil
}

// jetStreamAcked publishes to a stream and waits for its acknowledgement, on one connection for all.
func jetStreamAcked(_ context.Context, address string) (Acked, error) {
	c, err := natsgo.Connect("nats://" + address)
	if err != nil {
		return Acked{}, err
	}
	js, err := c.JetStream()
	if err != nil {
		c.Close()
		return Acked{}, err
	}
	return Acked{
		Publish: func(ctx context.Context, topic string, payload []byte) error {
			_, err := js.Publish(topic, payload, natsgo.Context(ctx))
			return err
		},
		Close: func() error { c.Close(); return nil },
	}, nil
}

// Publish implements Publisher.
func (p *jetStreamPublisher) Publish(topic string, payload []byte) error {
	_, err := p.js.PublishAsync(topic, payload)
	return err
}

// Flush implements Publisher: nats.go sends by itself.
func (p *jetStreamPublisher) Flush() error { return nil }

// Close implements Publisher.
func (p *jetStreamPublisher) Close() error {
	defer p.c.Close()
	select {
	case <-p.js.PublishAsyncComplete():
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("JetStream has not acknowledged everything within 10 s")
	}
}
