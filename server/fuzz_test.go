package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// bytesCodec sends bytes as they are, and looks at nothing.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, _ := v.([]byte)
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}
func (bytesCodec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (bytesCodec) Name() string                         { return "proto" }

// Whatever bytes a client sends as a message, to whatever method, it gets an answer or a status, and the next client is served.
func FuzzMessages(f *testing.F) {
	s := runneltest.StartServer(f, server.Config{Defaults: server.Namespace{History: "memory", MaxEvents: 100}, Limits: server.Limits{MaxNamespaces: 10}})
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	next := newClients(f, s.Addr)
	methods := []string{
		runnelv1.StreamService_Publish_FullMethodName, runnelv1.StreamService_PublishStream_FullMethodName, runnelv1.StreamService_Subscribe_FullMethodName,
		runnelv1.StreamService_EstablishStream_FullMethodName, runnelv1.StreamService_ReadHistory_FullMethodName, runnelv1.StreamService_GetTopic_FullMethodName,
		runnelv1.StreamService_ListTopics_FullMethodName, runnelv1.AdminService_Revoke_FullMethodName, "/runnel.v1.StreamService/Nothing", "/",
	}
	for i, m := range []proto.Message{
		&runnelv1.PublishRequest{Topic: "a.b", Headers: map[string]string{"k": "v"}, ExpectedOffset: proto.Uint64(1 << 63)},
		&runnelv1.PublishRequest{Topic: "a..b"},
		&runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.>", Credit: 1, MaxLag: 1 << 31, Overflow: 99}}},
		&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Id: 1 << 31, Pattern: "a.*"}}},
		&runnelv1.ReadHistoryRequest{Pattern: "a.>", Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_LastN{LastN: 1 << 31}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), b[:len(b)/2])
	}
	f.Add(uint8(3), []byte("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, method uint8, b []byte) {
		answered := int(method)%len(methods) != 2 // Subscribe may have nothing more to say
		limit := 20 * time.Second
		if !answered {
			limit = 200 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		g, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, methods[int(method)%len(methods)], grpc.ForceCodecV2(bytesCodec{}))
		if err != nil {
			t.Fatal(err)
		}
		if g.SendMsg(b) == nil && g.CloseSend() == nil {
			for range 3 { // a subscription goes on
				if err = g.RecvMsg(nil); err != nil {
					break
				}
			}
		}
		if answered && status.Code(err) == codes.DeadlineExceeded {
			t.Errorf("no answer to %x at %s", b, methods[int(method)%len(methods)])
		}
		cancel()
		if _, err := next.GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.b"}); err != nil && status.Code(err) != codes.NotFound {
			t.Errorf("the next client: %v", err)
		}
	})
}
