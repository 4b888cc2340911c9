package natsengine

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy stands between a node and a NATS server. It passes connections on, and cuts them, slows them down, holds something back, or
// changes what the server says, as it is told to.
type proxy struct {
	listener net.Listener
	to       string
	group    sync.WaitGroup
	// delay is how long everything takes, each way; sees is told what the node sends; filter makes, for each connection, what changes what
	// goes in and out. newProxy sets them.
	delay  time.Duration
	sees   func([]byte)
	filter func() (in, out func([]byte, net.Conn) []byte)

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	down  bool
	hold  *hold
}

// hold is something that a node sends, and that does not come through until it is let go, nor what the connection sends behind it.
type hold struct {
	match   []byte
	reached chan struct{} // closed when it is there
	let     chan struct{}
}

func newProxy(t testing.TB, url string, set ...func(*proxy)) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: strings.TrimPrefix(url, "nats://"), conns: map[net.Conn]struct{}{}}
	for _, f := range set {
		f(p)
	}
	p.group.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut(true)
		p.group.Wait()
	})
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

// holdBack holds back what a node sends from the next occurrence of match on.
func (p *proxy) holdBack(match string) *hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = &hold{[]byte(match), make(chan struct{}), make(chan struct{})}
	return p.hold
}

func (p *proxy) accept() {
	for {
		a, err := p.listener.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", p.to)
		if err != nil {
			a.Close()
			continue
		}
		p.mu.Lock()
		if p.down {
			a.Close()
			b.Close()
		}
		p.conns[a], p.conns[b] = struct{}{}, struct{}{}
		p.mu.Unlock()
		in, out := p.held, func(chunk []byte, _ net.Conn) []byte { return chunk }
		if p.filter != nil {
			in, out = p.filter()
		}
		p.group.Go(func() { p.pump(b, a, in) })
		p.group.Go(func() { p.pump(a, b, out) })
	}
}

// pump copies what comes; by may change or delay it.
func (p *proxy) pump(to, from net.Conn, by func([]byte, net.Conn) []byte) {
	type late struct {
		chunk []byte
		at    time.Time
	}
	queue := make(chan late, 1024)
	p.group.Go(func() {
		for l := range queue {
			time.Sleep(time.Until(l.at)) // the delay itself
			_, _ = to.Write(l.chunk)     // if it fails the other side ends too
		}
		to.Close()
	})
	defer close(queue)
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		queue <- late{by(bytes.Clone(buf[:n]), to), time.Now().Add(p.delay)}
	}
}

// held returns a chunk when nothing in it is held back any more. What comes before that in the chunk it has written.
func (p *proxy) held(chunk []byte, to net.Conn) []byte {
	if p.sees != nil {
		p.sees(chunk)
	}
	p.mu.Lock()
	h, at := p.hold, -1
	if h != nil {
		at = bytes.Index(chunk, h.match)
	}
	if at < 0 {
		p.mu.Unlock()
		return chunk
	}
	p.hold = nil
	p.mu.Unlock()
	_, _ = to.Write(chunk[:at])
	close(h.reached)
	<-h.let
	return chunk[at:]
}

// cut breaks all connections; down says whether new ones are refused.
func (p *proxy) cut(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
	p.down = down
}
