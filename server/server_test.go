package server_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/waits"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

func TestMain(m *testing.M) {
	waits.Beside(8)
	m.Run()
}

// api is a plain generated client: what users of other languages have.
func api(t *testing.T, addr string, opts ...grpc.DialOption) runnelv1.StreamServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return runnelv1.NewStreamServiceClient(conn)
}

func reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			return i.GetReason()
		}
	}
	return ""
}

func earliest(pattern string) *runnelv1.Subscription {
	return &runnelv1.Subscription{Pattern: pattern, Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{}}}
}

// A reader that never reads is ended, and so is its connection, on which nothing else lives.
func TestReaderThatNeverReads(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{SendTimeout: 500 * time.Millisecond, Defaults: server.Namespace{History: "memory"}})
	c := api(t, s.Addr, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	payload := make([]byte, 100<<10)
	for range 20 {
		if _, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.b", Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := c.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{earliest("a.b")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // it is open
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // reading nothing is what is tested
	events := 0
	for err == nil {
		var m *runnelv1.StreamResponse
		if m, err = stream.Recv(); err == nil {
			for _, d := range m.GetDeliveries() {
				events += len(d.GetEvents())
			}
		}
	}
	if status.Code(err) != codes.ResourceExhausted || reason(err) != "SLOW_CONSUMER" || events >= 20 {
		t.Errorf("%d events, then %v", events, err)
	}
}

// A session with many commands on its way gets every answer.
func TestSession(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
	c := api(t, s.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := c.EstablishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(id uint64, r *runnelv1.StreamRequest) {
		t.Helper()
		r.RequestId = id
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	send(1, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: earliest("a.>")}})
	send(2, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Id: 1, Pattern: "a.x"}}})
	for i := range 10 {
		send(uint64(10+i), &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: fmt.Sprintf("a.t%d", i), EventId: "x"}}})
	}
	send(3, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: "b.c"}}})
	send(4, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_RefreshToken{RefreshToken: &runnelv1.RefreshToken{}}})
	send(5, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: &runnelv1.Unsubscribe{Subscription: 7}}})
	send(6, &runnelv1.StreamRequest{})
	answers, events := map[uint64]string{}, 0
	for len(answers) < 16 || events < 10 {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err, answers)
		}
		for _, c := range m.GetControls() {
			switch x := c.GetControl().(type) {
			case *runnelv1.Control_CommandError:
				answers[c.GetRequestId()] = codes.Code(x.CommandError.GetStatus().GetCode()).String()
			case *runnelv1.Control_Published:
				answers[c.GetRequestId()] = fmt.Sprint("published ", x.Published.GetResults()[0].GetOffset())
			case *runnelv1.Control_Subscribed:
				answers[c.GetRequestId()] = fmt.Sprint("subscribed ", x.Subscribed.GetSubscription())
			}
		}
		for _, d := range m.GetDeliveries() {
			events += len(d.GetEvents())
		}
	}
	want := map[uint64]string{1: "subscribed 1", 2: "InvalidArgument", 3: "NotFound", 4: "FailedPrecondition", 5: "NotFound", 6: "InvalidArgument"}
	for i := range 10 {
		want[uint64(10+i)] = fmt.Sprint("published ", i+1)
	}
	for id, w := range want {
		if answers[id] != w {
			t.Errorf("request %d: %q, want %q", id, answers[id], w)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if err.Error() != "EOF" {
		t.Errorf("after closing: %v", err)
	}
}

// A client that ends its side gets everything that is there, and OK.
func TestHalfClose(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	c := api(t, s.Addr)
	const events = 5000
	up, err := c.PublishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range events {
		if err := up.Send(&runnelv1.PublishRequest{Topic: "a.b", Payload: make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := up.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	stream, err := c.EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: earliest("a.>")}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for err == nil {
		var m *runnelv1.StreamResponse
		if m, err = stream.Recv(); err == nil {
			for _, d := range m.GetDeliveries() {
				n += len(d.GetEvents())
			}
		}
	}
	if err.Error() != "EOF" || n != events {
		t.Errorf("%d events, then %v", n, err)
	}
}

func TestStopIsGraceful(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	c := api(t, s.Addr)
	stream, err := c.Subscribe(t.Context(), &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.>"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	drained := false
	for err == nil {
		var m *runnelv1.StreamResponse
		if m, err = stream.Recv(); err == nil {
			for _, c := range m.GetControls() {
				drained = drained || c.GetDrain() != nil
			}
		}
	}
	if status.Code(err) != codes.Unavailable || reason(err) != "DRAINING" || !drained {
		t.Errorf("%v, told to move: %v", err, drained)
	}
}

// Streams that do not end by themselves, as those of readers that never read, are cut when the drain timeout is over.
func TestStopIsForced(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{DrainTimeout: 500 * time.Millisecond, DrainNotice: time.Hour, Defaults: server.Namespace{History: "memory"}})
	c := api(t, s.Addr, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	for range 20 {
		if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b", Payload: make([]byte, 100<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	stuck, err := c.Subscribe(t.Context(), &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{earliest("a.b")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stuck.Recv(); err != nil {
		t.Fatal(err)
	}
	stays := api(t, s.Addr) // and ignores that it is told to move
	if _, err := stays.EstablishStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("the server has not stopped")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for want, cfg := range map[string]server.Config{
		"will not listen on 0.0.0.0:1: it can be reached from other machines, and there is no TLS and no authentication; --insecure allows it all the same": {Listen: "0.0.0.0:1"},
		`bad address "x": it must be HOST:PORT`:                                          {Admin: "x"},
		`namespace a: history "dsk" is not one of disk, os, memory, none`:                {Namespaces: map[string]server.Namespace{"a": {History: "dsk"}}},
		`defaults: policy "x" is not one of catch-up, drop-oldest, conflate, disconnect`: {Defaults: server.Namespace{Overflow: "x"}},
		`bad namespace "a.b": it is one token, without dots`:                             {Namespaces: map[string]server.Namespace{"a.b": {}}},
	} {
		if _, err := cfg.Check(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
