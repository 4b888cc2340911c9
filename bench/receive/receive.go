//go:build linux

// Package receive is a client of many connections that costs little: a few threads wait for all of them and hand what comes to a
// parser, count events, and record how late they are.
package receive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/runnelhq/runnel/bench/wire"
	"github.com/runnelhq/runnel/internal/load"
)

// workers share the connections.
const workers = 2

var began = time.Now()

// StampSize is the least size of a payload.
const StampSize = 8

// Stamp writes the time when an event was due into the first eight bytes of its payload.
func Stamp(payload []byte, due time.Time) {
	binary.LittleEndian.PutUint64(payload, uint64(due.Sub(began)))
}

// Receiver holds connections. Add, then Run; counts may be read at any time.
type Receiver struct {
	Delivered atomic.Int64
	Noticed   atomic.Int64
	Bytes     atomic.Int64 // received by sinks that tell
	Delays    load.Recorder
	Window    *load.Window // told of what is delivered; nil: nobody

	workers [workers]*worker
	shards  [sinkShards]*load.Shard // of sinks
	added   int
	sinks   int
	stop    sync.Once
	failed  atomic.Pointer[error]
	ready   atomic.Int64
	allIn   chan struct{} // closed when all are ready
	all     int64
}

// worker is one thread's share.
type worker struct {
	r     *Receiver
	epoll int
	stop  [2]int // a pipe: closing its end stops the worker
	shard *load.Shard

	mu    sync.Mutex
	conns map[int32]*conn

	// Of the feed under way.
	now    time.Duration
	events int
	noted  int
	delays []time.Duration
}

type conn struct {
	w      *worker
	fd     int
	parser wire.Parser
	ready  bool
}

// New prepares a receiver for so many connections.
func New(connections int) (*Receiver, error) {
	r := &Receiver{allIn: make(chan struct{}), all: int64(connections)}
	for i := range r.workers {
		w := &worker{r: r, shard: r.Delays.Shard(), conns: map[int32]*conn{}}
		var err error
		if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			return nil, err
		}
		if err = unix.Pipe2(w.stop[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, err
		}
		if err = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, w.stop[0], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
			return nil, err
		}
		r.workers[i] = w
	}
	for i := range r.shards {
		r.shards[i] = r.Delays.Shard()
	}
	return r, nil
}

// Add connects to an address, writes hello, and gives what comes to a parser.
func (r *Receiver) Add(address string, hello []byte, parser func(wire.Events) wire.Parser) error {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	c, ok := nc.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is not TCP", nc)
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	w := r.workers[r.added%workers]
	r.added++
	fd, err := take(c)
	if err != nil {
		return err
	}
	cn := &conn{w: w, fd: fd}
	cn.parser = parser(cn)
	w.mu.Lock()
	w.conns[int32(fd)] = cn
	w.mu.Unlock()
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// take takes the socket out of Go's hands, whose poller would wake for every packet too.
func take(c *net.TCPConn) (fd int, err error) {
	defer c.Close()
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var dup error
	if err := rc.Control(func(s uintptr) {
		if fd, dup = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0); dup == nil {
			dup = unix.SetNonblock(fd, true)
		}
	}); err != nil {
		return 0, err
	}
	return fd, dup
}

// AllReady is closed once every connection's subscription stands.
func (r *Receiver) AllReady() <-chan struct{} { return r.allIn }

// Run receives until Stop, or until a connection fails: then the error says how.
func (r *Receiver) Run() error {
	var g errgroup.Group
	for _, w := range r.workers {
		g.Go(func() error {
			defer r.Stop()
			return w.run()
		})
	}
	err := g.Wait()
	if failed := r.failed.Load(); failed != nil {
		err = errors.Join(*failed, err)
	}
	return err
}

// Stop ends Run. It may be called more than once.
func (r *Receiver) Stop() {
	r.stop.Do(func() {
		for _, w := range r.workers {
			unix.Close(w.stop[1]) // readable as end of file
		}
	})
}

// Close closes the connections, after Run has returned.
func (r *Receiver) Close() {
	r.Stop()
	for _, w := range r.workers {
		for _, c := range w.conns {
			unix.Close(c.fd)
		}
		unix.Close(w.epoll)
		unix.Close(w.stop[0])
	}
}

func (w *worker) run() error {
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			if e.Fd < 0 {
				return nil
			}
			w.mu.Lock()
			c := w.conns[e.Fd]
			w.mu.Unlock()
			if err := c.read(buf); err != nil {
				return err
			}
		}
	}
}

func (c *conn) read(buf []byte) error {
	n, err := unix.Read(c.fd, buf)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return err
	case n == 0:
		return errors.New("the server has closed a connection")
	}
	w := c.w
	w.now, w.events, w.noted = time.Since(began), 0, 0
	reply, err := c.parser.Feed(buf[:n])
	if err != nil {
		return err
	}
	if len(reply) > 0 {
		if _, err := unix.Write(c.fd, reply); err != nil { // some bytes on a connection that is read: they fit its buffer
			return err
		}
	}
	if w.events+w.noted == 0 {
		return nil
	}
	w.shard.Record(w.delays...)
	w.delays = w.delays[:0]
	w.r.Delivered.Add(int64(w.events))
	w.r.Noticed.Add(int64(w.noted))
	if w.r.Window != nil {
		w.r.Window.Delivered(w.events + w.noted)
	}
	return nil
}

// Ready implements wire.Events.
func (c *conn) Ready() {
	if !c.ready {
		c.ready = true
		c.w.r.oneReady()
	}
}

func (r *Receiver) oneReady() {
	if r.ready.Add(1) == r.all {
		close(r.allIn)
	}
}

// Event implements wire.Events.
func (c *conn) Event(payload []byte) {
	w := c.w
	w.events++
	if len(payload) >= 8 {
		w.delays = append(w.delays, w.now-time.Duration(binary.LittleEndian.Uint64(payload)))
	}
}

// Noticed implements wire.Events.
func (c *conn) Noticed(n int) { c.w.noted += n }
