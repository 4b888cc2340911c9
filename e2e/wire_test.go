package e2e

import (
	"bufio"
	"bytes"
	endian "encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

const (
	publishPath   = "/runnel.v1.StreamService/Publish"
	subscribePath = "/runnel.v1.StreamService/Subscribe"
	sessionPath   = "/runnel.v1.StreamService/EstablishStream"
)

// wire is an HTTP/2 connection that does what its user says, right or wrong. Writing belongs to one goroutine.
type wire struct {
	t *testing.T
	*net.TCPConn
	w     *bufio.Writer
	fr    *http2.Framer // of both directions
	enc   *hpack.Encoder
	block bytes.Buffer
	last  uint32 // last stream id used; begins at -1

	group   sync.WaitGroup
	changed chan struct{} // receives after each frame that was read

	mu  sync.Mutex
	got tally
}

// tally is what the server has sent.
type tally struct {
	data     int // DATA frames
	resets   map[http2.ErrCode]int
	goAway   []http2.ErrCode
	statuses map[string]int // grpc-status
	windows  map[uint32]int // WINDOW_UPDATE, by stream
	pongs    int
	over     error // why nothing more comes
}

// String leaves out the windows.
func (g *tally) String() string {
	return fmt.Sprintf("%d DATA, RST_STREAM %v, GOAWAY %v, statuses %v, over: %v", g.data, g.resets, g.goAway, g.statuses, g.over)
}

func (g *tally) reset() (n int) {
	for _, m := range g.resets {
		n += m
	}
	return n
}

func (g *tally) answered() (n int) {
	for _, m := range g.statuses {
		n += m
	}
	return n
}

// dialTCP connects and says nothing. What is closed is closed at once: thousands of connections would use up the ports otherwise.
func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	tcp := conn.(*net.TCPConn)
	if err := tcp.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	return tcp
}

// connect is a connection that has said hello.
func connect(t *testing.T, addr string, settings ...http2.Setting) *wire {
	t.Helper()
	tcp := dialTCP(t, addr)
	w := bufio.NewWriterSize(tcp, 64<<10)
	c := &wire{t: t, TCPConn: tcp, w: w, fr: http2.NewFramer(w, tcp), last: 1<<32 - 1, changed: make(chan struct{}, 1),
		got: tally{resets: map[http2.ErrCode]int{}, statuses: map[string]int{}, windows: map[uint32]int{}}}
	c.fr.AllowIllegalWrites = true
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4<<10, nil)
	c.enc = hpack.NewEncoder(&c.block)
	_, _ = w.WriteString(http2.ClientPreface) // the writer keeps errors for Flush
	_ = c.fr.WriteSettings(settings...)
	_ = c.fr.WriteWindowUpdate(0, 1<<31-1-65535) // the streams' windows are what bounds the server
	_ = c.flush()
	return c
}

// flush sends what was written; false if the connection is gone, or takes nothing.
func (c *wire) flush() bool { return c.w.Flush() == nil }

// close ends the connection and whoever reads it.
func (c *wire) close() {
	c.TCPConn.Close()
	c.group.Wait()
}

// header encodes a header block.
func (c *wire) header(fields ...hpack.HeaderField) []byte {
	c.block.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(f) // a buffer takes everything
	}
	return c.block.Bytes()
}

// call is the header of a call, as every client sends it.
func call(path string, extra ...hpack.HeaderField) []hpack.HeaderField {
	return append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}, {Name: ":authority", Value: "runnel"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, extra...)
}

// open begins a call and returns its stream.
func (c *wire) open(path string, extra ...hpack.HeaderField) (uint32, error) {
	id := c.next()
	return id, c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.header(call(path, extra...)...), EndHeaders: true})
}

// next is a stream that was not used yet.
func (c *wire) next() uint32 {
	c.last += 2
	return c.last
}

// prefix is what gRPC puts before a message.
func prefix(compressed bool, size uint32) []byte {
	b := make([]byte, 1, 5)
	if compressed {
		b[0] = 1
	}
	return endian.BigEndian.AppendUint32(b, size)
}

// message sends one message. It does not look at windows.
func (c *wire) message(id uint32, end bool, message []byte) error {
	return c.data(id, end, append(prefix(false, uint32(len(message))), message...))
}

func (c *wire) data(id uint32, end bool, b []byte) error {
	for len(b) > 16<<10 {
		if err := c.fr.WriteData(id, false, b[:16<<10]); err != nil {
			return err
		}
		b = b[16<<10:]
	}
	return c.fr.WriteData(id, end, b)
}

// read begins to take what the server sends.
func (c *wire) read() {
	c.group.Go(func() {
		for {
			f, err := c.fr.ReadFrame()
			var stream http2.StreamError
			if err != nil && !errors.As(err, &stream) {
				c.note(func(g *tally) { g.over = err })
				return
			}
			c.note(func(g *tally) { g.add(f) })
		}
	})
}

func (c *wire) note(f func(*tally)) {
	c.mu.Lock()
	f(&c.got)
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (g *tally) add(f http2.Frame) {
	switch f := f.(type) {
	case *http2.DataFrame:
		g.data++
	case *http2.RSTStreamFrame:
		g.resets[f.ErrCode]++
	case *http2.GoAwayFrame:
		g.goAway = append(g.goAway, f.ErrCode)
	case *http2.WindowUpdateFrame:
		g.windows[f.StreamID]++
	case *http2.PingFrame:
		if f.IsAck() {
			g.pongs++
		}
	case *http2.MetaHeadersFrame:
		for _, h := range f.RegularFields() {
			if h.Name == "grpc-status" {
				g.statuses[h.Value]++
			}
		}
	}
}

// await waits until what was read is enough, at most for a time; it says whether it was.
func (c *wire) await(most time.Duration, enough func(*tally) bool) bool {
	timeout := time.After(most)
	for {
		c.mu.Lock()
		yes, over := enough(&c.got), c.got.over != nil
		c.mu.Unlock()
		if yes || over {
			return yes
		}
		select {
		case <-c.changed:
		case <-timeout:
			return false
		}
	}
}

// closed waits until the server has closed the connection, which must be read.
func (c *wire) closed(most time.Duration) bool {
	return c.await(most, func(g *tally) bool { return g.over != nil })
}

// seen is what the server has sent so far.
func (c *wire) seen() *tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.got
	g.resets, g.statuses, g.windows = maps.Clone(g.resets), maps.Clone(g.statuses), maps.Clone(g.windows)
	return &g
}

// gorge asks for 50 MiB without end of window, and reads no more than the beginning: once the connection is full, the server cannot write.
func (c *wire) gorge() error {
	// The kernel's buffers are small, so that it is the server that takes what is thrown, or does not.
	if err := errors.Join(c.SetReadBuffer(4<<10), c.SetWriteBuffer(64<<10)); err != nil {
		return err
	}
	_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	if err := c.follow("past.t"); err != nil {
		return err
	}
	// The beginning is read, so that it is known to have begun; what comes then fills the connection.
	err := errors.Join(c.w.Flush(), c.SetReadDeadline(time.Now().Add(deadline)))
	if err == nil {
		_, err = io.CopyN(io.Discard, c.TCPConn, 16<<10)
	}
	time.Sleep(100 * time.Millisecond)
	return err
}

// follow subscribes to everything there ever was.
func (c *wire) follow(pattern string) error {
	id, err := c.open(subscribePath)
	if err != nil {
		return err
	}
	return c.message(id, true, everything(pattern))
}

func everything(pattern string) []byte {
	b, err := proto.Marshal(&runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{
		Pattern: pattern, Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{}},
	}}})
	if err != nil {
		panic(err) // it is a constant
	}
	return b
}

// What a flood of frames comes to.
const (
	swallowed = "swallowed" // the server took everything
	held      = "held up"   // the server reads no more
	cut       = "cut"       // the connection is gone
)

// flood writes frames until the server holds the connection up for so long, or cuts it.
func (c *wire) flood(s *siege, patience time.Duration, n int, frame func(i int) error) string {
	for i := range n {
		if i%1024 == 0 {
			if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
				return cut
			}
		}
		switch err := frame(i); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return held
		case err != nil:
			return cut
		}
		s.thrown.Add(1)
	}
	switch err := c.w.Flush(); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return held
	case err != nil:
		return cut
	}
	return swallowed
}

// cutWhileHeld waits until a server that does not read this connection has closed it.
func (c *wire) cutWhileHeld(most time.Duration) bool {
	for end := time.Now().Add(most); time.Now().Before(end); {
		if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			return true
		}
		if _, err := c.Write(make([]byte, 1<<10)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return true
		}
	}
	return false
}

// slow is a connection that says what it has to say bit by bit.
type slow struct {
	*net.TCPConn
	rest  []byte
	steps bool
}

// say sends so many bytes more. Whether they arrive is not its business.
func (c *slow) say(n int) {
	n = min(n, len(c.rest))
	_, _ = c.Write(c.rest[:n])
	c.rest = c.rest[n:]
}

// cut says whether the server has closed the connection.
func (c *slow) cut() bool {
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return true
	}
	_, err := io.Copy(io.Discard, c.TCPConn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}
