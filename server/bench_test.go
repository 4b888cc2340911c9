package server_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// bare answers a unary publish without doing anything: the floor under BenchmarkPublish.
type bare struct {
	runnelv1.UnimplementedStreamServiceServer
}

func (bare) Publish(_ context.Context, r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
	return &runnelv1.PublishResponse{EventId: r.GetEventId(), Offset: 1, Timestamp: 1, Epoch: "0123456789abcdef"}, nil
}

func dial(b *testing.B, addr string) runnelv1.StreamServiceClient {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return runnelv1.NewStreamServiceClient(conn)
}

func benchPublish(b *testing.B, addr string) {
	c := dial(b, addr)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		r := &runnelv1.PublishRequest{Topic: "a.b", Payload: make([]byte, 136)}
		for pb.Next() {
			if _, err := c.Publish(context.Background(), r); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkPublish is a unary publish over loopback, beside a handler that does nothing on the same grpc-go.
func BenchmarkPublish(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		g := grpc.NewServer()
		runnelv1.RegisterStreamServiceServer(g, bare{})
		done := make(chan error, 1)
		go func() { done <- g.Serve(l) }()
		benchPublish(b, l.Addr().String())
		b.StopTimer()
		g.Stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	for _, history := range []string{"none", "memory", "os", "disk"} {
		b.Run(history, func(b *testing.B) {
			s := runneltest.StartServer(b, server.Config{Defaults: server.Namespace{History: history}})
			b.ResetTimer()
			benchPublish(b, s.Addr)
		})
	}
}

// BenchmarkReplay is one subscriber that reads a log from its beginning, over loopback: raw frames, and through the SDK.
func BenchmarkReplay(b *testing.B) {
	const events = 200_000
	s := runneltest.StartServer(b, server.Config{Defaults: server.Namespace{History: "os"}})
	c := s.Client()
	up, err := c.Upload(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for i := range events {
		if err := up.Send(fmt.Sprintf("a.t%d", i%10), make([]byte, 136)); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := up.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("frames", func(b *testing.B) {
		api := dial(b, s.Addr)
		for b.Loop() {
			ctx, cancel := context.WithCancel(b.Context())
			stream, err := api.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{
				Pattern: "a.>", Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{}},
			}}})
			if err != nil {
				b.Fatal(err)
			}
			for n := 0; n < events; {
				m, err := stream.Recv()
				if err != nil {
					b.Fatal(err)
				}
				for _, d := range m.GetDeliveries() {
					n += len(d.GetEvents())
				}
			}
			cancel()
		}
		b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("sdk", func(b *testing.B) {
		for b.Loop() {
			sub, err := c.Subscribe(b.Context(), "a.>", runnel.From(runnel.Earliest()))
			if err != nil {
				b.Fatal(err)
			}
			for range events {
				if _, err := sub.Next(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			sub.Close()
		}
		b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkPublisher is one publisher of the SDK: a window of acknowledged events, and bulk.
func BenchmarkPublisher(b *testing.B) {
	s := runneltest.StartServer(b, server.Config{Defaults: server.Namespace{History: "none"}})
	c := s.Client()
	payload := make([]byte, 136)
	b.Run("window", func(b *testing.B) {
		p, err := c.Publisher(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Publish(b.Context(), "a.b", payload); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
	for _, topics := range []int{1, 1000} {
		b.Run(fmt.Sprintf("bulk/topics=%d", topics), func(b *testing.B) {
			names := make([]string, topics)
			for i := range names {
				names[i] = fmt.Sprintf("a.b%d", i)
			}
			up, err := c.Upload(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := up.Send(names[i%topics], payload); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := up.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
