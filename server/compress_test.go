package server_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/compress"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A call is answered in the coding of its request, and only then.
func TestCompressionIsTheClients(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	payload := bytes.Repeat([]byte("compressible "), 1000)
	for _, name := range append(compress.Names(), "") {
		var opts []grpc.CallOption
		if name != "" {
			opts = append(opts, grpc.UseCompressor(name))
		}
		c := api(t, s.Addr, grpc.WithDefaultCallOptions(opts...))
		stream, err := c.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.b"}}})
		if err != nil {
			t.Fatal(err)
		}
		header, err := stream.Header()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(header.Get("grpc-encoding"), ","); got != "" && got != name {
			t.Errorf("asked for %q, answered in %q", name, got)
		}
		for accepted := false; !accepted; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range m.GetControls() {
				accepted = accepted || c.GetSubscribed() != nil
			}
		}
		publish(t, ctx, c, "a.b", payload, 300)
		take(t, stream, 300)
		var trailer metadata.MD
		if _, err := c.GetTopic(ctx, &runnelv1.GetTopicRequest{Topic: "a.b"}, grpc.Trailer(&trailer)); err != nil {
			t.Error(err)
		}
		history, err := c.ReadHistory(ctx, &runnelv1.ReadHistoryRequest{Pattern: "a.b", Limit: 300})
		if err != nil {
			t.Fatal(err)
		}
		take(t, history, 300)
	}
}

// The SDK compresses if it is told to, on every kind of call.
func TestCompressionInTheSDK(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := runnel.Dial(s.Addr, runnel.WithCompression("lzma")); err == nil || !strings.Contains(err.Error(), `bad compression "lzma": it must be gzip or zstd`) {
		t.Errorf("an unknown compression: %v", err)
	}
	for i, name := range compress.Names() {
		c := s.Client(runnel.WithCompression(name))
		sub, err := c.Subscribe(ctx, "a.b", runnel.From(runnel.New()))
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Publisher(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := p.Publish(ctx, "a.b", bytes.Repeat([]byte("x"), 2000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			ev, err := sub.Next(ctx)
			if err != nil || len(ev.Payload) != 2000 {
				t.Fatal(len(ev.Payload), err)
			}
		}
		sub.Close()
		n := 0
		for _, err := range c.History(ctx, "a.b") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 100*(i+1) {
			t.Errorf("%s: %d events in the history", name, n)
		}
	}
}

// A reader that never reads holds no worker although its stream compresses, and is ended as others are; a large message in a small
// one is refused.
func TestCompressionIsBounded(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{SendTimeout: 500 * time.Millisecond, Defaults: server.Namespace{History: "memory"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	plain := api(t, s.Addr)
	for _, name := range compress.Names() {
		c := api(t, s.Addr, grpc.WithDefaultCallOptions(grpc.UseCompressor(name)), grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(1<<20))
		_, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.b", Payload: make([]byte, 64<<20)})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: 64 MiB in a small message: %v", name, err)
		}
		random := make([]byte, 60<<10)
		for i := range random {
			random[i] = byte(i * i * 2654435761 >> 7)
		}
		stuck := follow(t, ctx, c, &runnelv1.Subscription{Pattern: "a.c"})
		other := follow(t, ctx, plain, &runnelv1.Subscription{Pattern: "a.c"})
		for i := range 60 {
			random[0] = byte(i)
			publish(t, ctx, plain, "a.c", random, 5)
			take(t, other, 5)
		}
		time.Sleep(time.Second) // reading nothing is what is tested
		for err = nil; err == nil; {
			_, err = stuck.Recv()
		}
		if reason(err) != "SLOW_CONSUMER" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
