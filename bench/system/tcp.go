package system

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"

	"github.com/runnelhq/runnel/bench/wire"
)

// tcp is the floor: lengths and payloads on TCP, each topic's events in one log that all subscribers share, and a goroutine for each
// that writes what has gathered since its last write, uncopied. It checks nothing, keeps nothing and tells nobody what is lost.
func tcp() *System {
	return &System{
		Name: "tcp", Help: "raw TCP, shared log, writev: the floor",
		start: own("tcp"),
		Hello: func(topic string) []byte { return wire.AppendFramed([]byte{'S'}, []byte(topic)) },
		Parser: func(string) func(wire.Events) wire.Parser {
			return func(e wire.Events) wire.Parser { return wire.NewFramed(e) }
		},
		Publisher: newFramedPublisher,
	}
}

func init() {
	servers["tcp"] = func(ctx context.Context) (string, func() error, error) {
		t := &topicLogs{logs: map[string]*topicLog{}}
		return serveTCP(ctx, t, t.follow)
	}
}

// serveTCP serves publishers, whose connections begin with P, and leaves the others to follow.
func serveTCP(ctx context.Context, t *topicLogs, follow func(context.Context, net.Conn) error) (string, func() error, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				var kind [1]byte
				if _, err := c.Read(kind[:]); err != nil {
					return
				}
				if kind[0] == 'P' {
					t.ingest(c)
				} else {
					follow(ctx, c)
				}
			})
		}
	})
	return l.Addr().String(), func() error { group.Wait(); return nil }, nil
}

// batch is the most events of one write.
const batch = 512

func (t *topicLogs) follow(ctx context.Context, c net.Conn) error {
	topic, err := readFramed(c)
	if err != nil {
		return err
	}
	l := t.log(string(topic[4:]))
	at := l.head()
	if _, err := c.Write(make([]byte, 4)); err != nil { // the subscription stands
		return err
	}
	var buffers net.Buffers
	for {
		events, last, more := l.after(at, batch)
		if len(events) == 0 {
			select {
			case <-more:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		buffers = append(buffers[:0], events...)
		if _, err := buffers.WriteTo(c); err != nil {
			return err
		}
		at = last
	}
}

// framedPublisher writes topics and payloads with their lengths.
type framedPublisher struct {
	c net.Conn
	w *bufio.Writer
	b []byte
}

func newFramedPublisher(ctx context.Context, address string) (Publisher, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	p := &framedPublisher{c: c, w: bufio.NewWriterSize(c, 64<<10)}
	_, err = p.w.Write([]byte{'P'})
	return p, err
}

// Publish implements Publisher.
func (p *framedPublisher) Publish(topic string, payload []byte) error {
	p.b = wire.AppendFramed(wire.AppendFramed(p.b[:0], []byte(topic)), payload)
	_, err := p.w.Write(p.b)
	return err
}

// Flush implements Publisher.
func (p *framedPublisher) Flush() error { return p.w.Flush() }

// Close implements Publisher.
func (p *framedPublisher) Close() error { return errors.Join(p.w.Flush(), p.c.Close()) }
