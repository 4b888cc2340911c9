package grpcapi

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that frames fall back to
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"

	"github.com/runnelhq/runnel/internal/session"
)

// frame is an encoded message made of shared slices: the codec passes it on without marshalling or copying.
type frame struct{ data mem.BufferSlice }

// codec is grpc's protobuf codec, and frames besides.
type codec struct{ encoding.CodecV2 }

// Codec is what a server that serves this package's Service must be made with (grpc.ForceServerCodecV2).
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.data, nil
	}
	return c.CodecV2.Marshal(v)
}

// quota is what grpc-go takes for a stream before SendMsg blocks: 64 KiB not yet written to the connection. It is soft: a message
// of any size passes while some of it is left.
const quota = 64 << 10

// frameHeader is what grpc adds to each message, and counts.
const frameHeader = 5

// writer hands frames to a grpc stream and knows how much of them has not left yet, so that SendMsg is only called when it cannot
// block and a reader that never reads holds no goroutine. Behind each frame's slices goes an empty buffer of our own: grpc-go gives
// it back when it has written the frame, after it has returned the frame's bytes to the stream's quota. That order is not
// documented; TestWriterQuota fails if it changes. A writer belongs to one goroutine.
type writer struct {
	stream      grpc.ServerStream
	outstanding atomic.Int64
	freed       chan struct{} // receives when something has left
}

func newWriter(stream grpc.ServerStream) *writer {
	return &writer{stream: stream, freed: make(chan struct{}, 1)}
}

func (w *writer) full() bool { return w.outstanding.Load() >= quota }

// send must not be called while the writer is full.
func (w *writer) send(f *session.Frame) error {
	size := f.Bytes + frameHeader
	data := make(mem.BufferSlice, 0, len(f.Slices)+1)
	for _, s := range f.Slices {
		data = append(data, mem.SliceBuffer(s))
	}
	w.outstanding.Add(int64(size))
	data = append(data, mem.NewBuffer(&receiptBytes, &receipt{w, size}))
	return w.stream.SendMsg(&frame{data})
}

// receiptBytes is empty, with a capacity above the size below which grpc does not give buffers back.
var receiptBytes = make([]byte, 0, 2<<10)

// receipt is the "pool" of the empty buffer behind one frame.
type receipt struct {
	w    *writer
	size int
}

func (r *receipt) Get(int) *[]byte { return &receiptBytes }

func (r *receipt) Put(*[]byte) {
	r.w.outstanding.Add(-int64(r.size))
	select {
	case r.w.freed <- struct{}{}:
	default:
	}
}

// connection is what the handshake knows of a client's connection, and how many streams live on it.
type connection struct {
	credentials.AuthInfo
	conn    net.Conn
	streams atomic.Int64
}

// Credentials lets the Service close connections whose streams are stuck.
func Credentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return exposing{c}
}

type exposing struct {
	credentials.TransportCredentials
}

func (e exposing) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := e.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	return conn, &connection{AuthInfo: info, conn: raw}, nil
}

func (e exposing) Clone() credentials.TransportCredentials {
	return exposing{e.TransportCredentials.Clone()}
}

// connectionOf returns the stream's connection; nil under a transport that is not ours.
func connectionOf(ctx context.Context) *connection {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil
	}
	c, _ := p.AuthInfo.(*connection)
	return c
}

// stuckGrace is how long a stream that has ended may hold what its client does not read.
const stuckGrace = 5 * time.Second

// graves closes connections on which nothing lives but what a stuck client does not read: only that frees it.
type graves struct {
	mu     sync.Mutex
	timers map[*connection]*time.Timer
}

// bury looks at the connection of a stream that has ended with bytes outstanding, a little later.
func (g *graves) bury(c *connection, w *writer) {
	if c == nil || w.outstanding.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timers == nil {
		g.timers = map[*connection]*time.Timer{}
	}
	if g.timers[c] != nil {
		return
	}
	g.timers[c] = time.AfterFunc(stuckGrace, func() {
		g.mu.Lock()
		delete(g.timers, c)
		g.mu.Unlock()
		if c.streams.Load() == 0 && w.outstanding.Load() > 0 {
			c.conn.Close() // the error would tell nobody anything
		}
	})
}

func (g *graves) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.timers {
		t.Stop()
	}
}
