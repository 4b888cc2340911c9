package grpcapi

import (
	"context"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that frames fall back to
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"

	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/session"
)

// frame is an encoded message made of shared slices: the codec passes it on without marshalling or copying.
type frame struct {
	data mem.BufferSlice
	rpc  rpc
}

// codec is grpc's protobuf codec, and frames besides.
type codec struct {
	encoding.CodecV2
	received func(kind string, bytes int)
	sent     *Sent
}

// Codec is what a server that serves this package's Service must be made with (grpc.ForceServerCodecV2). received is called for each
// request message, with its kind, a fixed set of words, and its size; what is sent is counted in sent.
func Codec(received func(kind string, bytes int), sent *Sent) encoding.CodecV2 {
	return codec{encoding.GetCodecV2("proto"), received, sent}
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if err := c.CodecV2.Unmarshal(data, v); err != nil {
		return err
	}
	c.received(kindOf(v), data.Len())
	return nil
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if ok {
		c.sent.add(f.rpc, f.data.Len())
		return f.data, nil
	}
	data, err := c.CodecV2.Marshal(v)
	if err == nil {
		c.sent.add(rpcOf(v), data.Len())
	}
	return data, err
}

// quota is what grpc-go takes for a stream before SendMsg blocks: 64 KiB not yet written to the connection. It is soft: a message
// of any size passes while some of it is left.
const quota = 64 << 10

// frameHeader is what grpc adds to each message, and counts.
const frameHeader = 5

// writer hands frames to a grpc stream and knows how much of them has not left yet, so that SendMsg is only called when it cannot
// block and a reader that never reads holds no goroutine. Behind each frame's slices goes an empty buffer of our own: grpc-go gives
// it back when it has written the frame, after it has returned the frame's bytes to the stream's quota. That order is not
// documented; TestWriterQuota fails if it changes. Sending belongs to one goroutine.
type writer struct {
	stream      grpc.ServerStream
	rpc         rpc
	outstanding atomic.Int64
	freed       func() // called when it is no longer full; must not block

	box chan *parcel // of a stream that compresses; else nil

	mu      sync.Mutex
	parcels []*parcel // with grpc-go
	remains []remain  // what took the place of parcels when the stream ended
}

// remain is what a parcel was counted as, kept apart from it so that nothing but grpc-go holds the parcel.
type remain struct {
	frame session.Frame
	size  int
}

func newWriter(stream grpc.ServerStream, r rpc, freed func()) *writer {
	return &writer{stream: stream, rpc: r, freed: freed}
}

// compresses makes the writer right for a stream that compresses: grpc-go copies a frame then, and gives it back before it has left, so
// that a send can block. One at a time is therefore sent by a goroutine of the stream's own, which the caller starts with the function
// returned; it ends with close, and with the stream. The writer is full as long as it sends.
func (w *writer) compresses() (send func()) {
	w.box = make(chan *parcel, 1)
	return func() {
		for p := range w.box {
			size := int64(p.size)
			// An error means that the stream has ended, which its handler learns from its context.
			_ = w.stream.SendMsg(&p.data)
			p.free()
			w.outstanding.Add(-size)
			w.freed()
		}
	}
}

// close ends the goroutine of a writer that compresses. Nothing may be sent any more.
func (w *writer) close() {
	if w.box != nil {
		close(w.box)
	}
}

// compression is the coding of what a stream sends; empty if it sends it as it is.
func compression(ctx context.Context) string {
	s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ SendCompress() string })
	if !ok || s.SendCompress() == encoding.Identity {
		return ""
	}
	return s.SendCompress()
}

func (w *writer) full() bool { return w.outstanding.Load() >= quota }

// parcel is a frame on its way, and the "pool" of the empty buffer behind it.
type parcel struct {
	frame session.Frame
	data  frame
	w     *writer
	size  int
	at    int // index in w.parcels, or then in w.remains, + 1; 0: grpc-go does not have it
}

var parcels = sync.Pool{New: func() any { return new(parcel) }}

func newParcel() *parcel { return parcels.Get().(*parcel) }

// free empties a parcel for its next use. Nothing else may hold it.
func (p *parcel) free() {
	p.frame.Release()
	clear(p.data.data)
	*p = parcel{frame: p.frame, data: frame{data: p.data.data[:0]}}
	parcels.Put(p)
}

// receiptBytes is empty, with a capacity above the size below which grpc does not give buffers back.
var receiptBytes = make([]byte, 0, 2<<10)

// send must not be called while the writer is full. The parcel is the writer's from then on.
func (w *writer) send(p *parcel) error {
	p.w, p.size, p.data.rpc = w, p.frame.Bytes+frameHeader, w.rpc
	for _, s := range p.frame.Slices {
		p.data.data = append(p.data.data, mem.SliceBuffer(s))
	}
	if w.box != nil {
		p.size = max(p.size, quota)
		w.outstanding.Add(int64(p.size))
		w.box <- p // there is room: the writer was not full
		return nil
	}
	p.data.data = append(p.data.data, mem.NewBuffer(&receiptBytes, p))
	w.outstanding.Add(int64(p.size))
	w.mu.Lock()
	w.parcels = append(w.parcels, p)
	p.at = len(w.parcels)
	w.mu.Unlock()
	return w.stream.SendMsg(&p.data)
}

// Get implements mem.BufferPool.
func (p *parcel) Get(int) *[]byte { return &receiptBytes }

// Put implements mem.BufferPool: grpc-go has written the frame, or will never.
func (p *parcel) Put(*[]byte) {
	w := p.w
	w.mu.Lock()
	at := p.at
	if at != 0 && w.remains != nil {
		w.mu.Unlock()
		w.lost(at)
		return
	}
	if at != 0 {
		last := w.parcels[len(w.parcels)-1]
		w.parcels[at-1], last.at = last, at
		w.parcels[len(w.parcels)-1] = nil
		w.parcels = w.parcels[:len(w.parcels)-1]
	}
	w.mu.Unlock()
	if at == 0 {
		return // abandoned
	}
	size := int64(p.size)
	p.free()
	if left := w.outstanding.Add(-size); left < quota && left+size >= quota {
		w.freed()
	}
}

// abandon gives back what grpc-go has forgotten with a connection that is gone. What it still holds of it is garbage.
func (w *writer) abandon() {
	w.mu.Lock()
	all := w.parcels
	w.parcels = nil
	for _, p := range all {
		p.at = 0
	}
	for i := range w.remains {
		w.remains[i].frame.Release()
		w.remains[i].size = 0
	}
	w.mu.Unlock()
	for _, p := range all {
		p.frame.Release()
	}
}

// loosen is for a stream that has ended. What grpc-go was given after a client's reset it has dropped, and never gives back: from here on
// the garbage collector says so.
func (w *writer) loosen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remains = make([]remain, len(w.parcels))
	for i, p := range w.parcels {
		w.remains[i] = remain{p.frame, p.size}
		p.frame = session.Frame{}
		runtime.AddCleanup(p, w.lost, p.at)
	}
	w.parcels = nil
}

// lost gives back what is counted for a parcel that grpc-go no longer has, once.
func (w *writer) lost(at int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &w.remains[at-1]
	r.frame.Release()
	w.outstanding.Add(-int64(r.size))
	r.size = 0
}

// connection is what the handshake knows of a client's connection, and how many streams live on it.
type connection struct {
	credentials.AuthInfo
	conn    net.Conn
	streams atomic.Int64 // that send: sessions, Subscribe and ReadHistory
	calls   atomic.Int64 // of all kinds, ever
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

// sever closes the connection and throws away what the kernel has not sent yet.
func (c *connection) sever() {
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // on failure what is under way arrives, as with any close
	}
	c.conn.Close()
}

func (c *connection) closed() bool { return gone(c.conn) }

// gone says that a connection was closed at this end.
func gone(c net.Conn) bool {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

const (
	// stuckGrace is how long a stream that has ended may hold what its client does not read.
	stuckGrace = 5 * time.Second
	// visitEvery is how often it is looked at.
	visitEvery = time.Second
)

// graves looks after streams that have ended with bytes in grpc-go, and gives back what died with its connection. Only closing the
// connection frees what a stuck client does not read. That is done when nothing else lives on it and the client has not itself reset
// the stream, or when memory is short: the client's other streams can resume, and nobody else is to suffer for it.
type graves struct {
	budget *budget.Budget

	mu     sync.Mutex
	all    map[*grave]struct{}
	closed bool
}

// grave is a stream that has ended.
type grave struct {
	conn  *connection
	w     *writer
	ended time.Time
	calls int64 // that the connection had had by then
	reset bool  // by the client
	visit *time.Timer
}

// bury looks after the writer of a stream whose handler is about to return.
func (g *graves) bury(c *connection, w *writer) {
	if c == nil || w.outstanding.Load() == 0 {
		return
	}
	// Most streams end with their connection. Clients that come and go could die faster than they are visited.
	if c.closed() {
		w.abandon()
		return
	}
	// Whatever else ends a context does so with a cause.
	dead := &grave{conn: c, w: w, ended: time.Now(), calls: c.calls.Load(), reset: context.Cause(w.stream.Context()) == context.Canceled}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		w.abandon()
		return
	case g.all == nil:
		g.all = map[*grave]struct{}{}
	}
	w.loosen()
	g.all[dead] = struct{}{}
	dead.visit = time.AfterFunc(visitEvery, func() { g.look(dead) })
}

func (g *graves) look(dead *grave) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	c, w := dead.conn, dead.w
	switch {
	case w.outstanding.Load() == 0:
	case c.closed():
		w.abandon()
	case !dead.reset && dead.quiet() || g.budget.Short():
		c.conn.Close() // the error would tell nobody anything
		w.abandon()
	default: // the client may still read
		dead.visit.Reset(visitEvery)
		return
	}
	delete(g.all, dead)
}

// quiet says that nobody has used the connection for long enough.
func (d *grave) quiet() bool {
	return d.conn.streams.Load() == 0 && d.conn.calls.Load() == d.calls && time.Since(d.ended) >= stuckGrace
}

func (g *graves) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for dead := range g.all {
		dead.visit.Stop()
		dead.w.abandon()
	}
}
