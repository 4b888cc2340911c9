package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/bench/wire"
)

// runnelServer is the real server, built from this tree, with one namespace that keeps what history says.
func runnelServer(name, history string) *System {
	return &System{
		Name: name, Help: "Runnel, history " + history,
		start: func(dir string) (*exec.Cmd, error) {
			exe, err := build()
			if err != nil {
				return nil, err
			}
			cfg := filepath.Join(dir, "runnel.yaml")
			// The loop is closed: a subscriber that lags behind the others is to be waited for, not dropped.
			text := fmt.Sprintf("namespaces:\n  bench:\n    history: %s\n    max_lag: 1000000\n", history)
			if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
				return nil, err
			}
			return exec.Command(exe, "serve", "--config", cfg, "--listen", "127.0.0.1:0", "--admin", "off", "--data", filepath.Join(dir, "data")), nil
		},
		Hello: func(topic string) []byte {
			request := &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: topic}}}
			return wire.GRPCCall(runnelv1.StreamService_Subscribe_FullMethodName, encoded(request))
		},
		Parser: func(string) func(wire.Events) wire.Parser {
			return func(e wire.Events) wire.Parser { return wire.NewGRPC(e, false, wire.StreamResponse) }
		},
		Publisher: func(ctx context.Context, address string) (Publisher, error) {
			return newGRPCPublisher(ctx, address, &runnelv1.StreamService_ServiceDesc.Streams[0], runnelv1.StreamService_PublishStream_FullMethodName)
		},
		Acked: ackedCall(runnelv1.StreamService_Publish_FullMethodName),
	}
}

// runnelSession is followed on bidirectional streams. In the scenario echo the same stream publishes.
func runnelSession() *System {
	s := runnelServer("runnel-session", "none")
	s.Help = "Runnel on bidirectional streams"
	s.Hello = func(topic string) []byte {
		return wire.GRPCOpen(runnelv1.StreamService_EstablishStream_FullMethodName, sessionSubscribe(topic))
	}
	s.Duplex = func(ctx context.Context, address, topic string, to wire.Events) (Publisher, error) {
		return newDuplex(ctx, address, runnelv1.StreamService_EstablishStream_FullMethodName, sessionSubscribe(topic), sessionPublish, wire.StreamResponse, to)
	}
	return s
}

var built struct {
	sync.Once
	exe      string
	borrowed bool
	err      error
}

// build builds the server once.
func build() (string, error) {
	built.Do(func() {
		dir, err := os.MkdirTemp("", "runnel-bench-")
		if err != nil {
			built.err = err
			return
		}
		built.exe = filepath.Join(dir, "runnel")
		// In its own module, so with the versions that it is released with.
		root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/runnelhq/runnel").Output()
		if err != nil {
			built.err = fmt.Errorf("finding the server's source: %w; run this in the directory bench", err)
			return
		}
		source := strings.TrimSpace(string(root))
		overlay, err := withCollection(dir, source)
		if err != nil {
			built.err = err
			return
		}
		cmd := exec.Command("go", "build", "-overlay", overlay, "-o", built.exe, "./cmd/runnel")
		cmd.Dir = source
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("building the server: %w: %s", err, out)
		}
	})
	return built.exe, built.err
}

// withCollection writes a build overlay that adds collectSource to the server's main package, and returns its path.
func withCollection(dir, source string) (string, error) {
	added, overlay := filepath.Join(dir, "collect.go"), filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(source, "cmd", "runnel", "collect.go"): added}})
	if err != nil {
		return "", err
	}
	return overlay, errors.Join(os.WriteFile(added, []byte(collectSource), 0o600), os.WriteFile(overlay, b, 0o600))
}

// Executable builds the server, once, and returns its path. Use makes another process of this program take that one.
func Executable() (string, error) { return build() }

// Use takes a server that was built already, which Cleanup leaves alone.
func Use(exe string) { built.Do(func() { built.exe, built.borrowed = exe, true }) }

// Cleanup removes what was built.
func Cleanup() {
	if built.exe != "" && !built.borrowed {
		os.RemoveAll(filepath.Dir(built.exe))
	}
}

// grpcPublisher sends encoded runnel.v1.PublishRequest messages on one stream.
type grpcPublisher struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
}

func newGRPCPublisher(ctx context.Context, address string, desc *grpc.StreamDesc, method string) (Publisher, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		return nil, err
	}
	stream, err := conn.NewStream(ctx, desc, method)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &grpcPublisher{conn, stream}, nil
}

// Publish implements Publisher.
func (p *grpcPublisher) Publish(topic string, payload []byte) error {
	const requestTopic, requestPayload = 1, 2
	b := make([]byte, 0, len(topic)+len(payload)+16)
	b = protowire.AppendTag(b, requestTopic, protowire.BytesType)
	b = protowire.AppendString(b, topic)
	b = protowire.AppendTag(b, requestPayload, protowire.BytesType)
	b = protowire.AppendBytes(b, payload)
	err := p.stream.SendMsg(b)
	if errors.Is(err, io.EOF) { // the reason comes with the answer
		err = p.stream.RecvMsg(new(runnelv1.PublishSummary))
	}
	return err
}

// Flush implements Publisher: grpc-go sends by itself.
func (p *grpcPublisher) Flush() error { return nil }

// Close implements Publisher.
func (p *grpcPublisher) Close() error {
	err := p.stream.CloseSend()
	if err == nil {
		err = p.stream.RecvMsg(new(runnelv1.PublishSummary))
	}
	return errors.Join(err, p.conn.Close())
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = data.Materialize()
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), v)
	}
	return errors.New("not a message")
}
