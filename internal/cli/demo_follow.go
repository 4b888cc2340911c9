package cli

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/runnelhq/runnel"
)

// follow shows what comes.
func (d *demo) follow(ctx context.Context) error {
	s, err := d.client.Session(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, pattern := range []string{"host.>", "process.>"} {
		sub, err := s.Subscribe(ctx, pattern)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			for e, err := range sub.Events(ctx) {
				if err != nil {
					return err
				}
				d.board.event(&e)
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// cutter is a dialer whose connection can be cut.
type cutter struct {
	mu   sync.Mutex
	conn net.Conn
}

func (c *cutter) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return conn, err
}

// cut closes the newest connection.
func (c *cutter) cut() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		conn.Close() // that it was closed before is as good
	}
}

// tally checks that offsets come without holes and without repetition. In a namespace that is followed whole, offsets have no
// holes, so a hole is a loss.
type tally struct {
	last             uint64 // 0: none yet
	missed, repeated uint64 // since the last report
}

func (t *tally) count(offset uint64) {
	switch {
	case t.last == 0 || offset == t.last+1:
	case offset > t.last:
		t.missed += offset - t.last - 1
	default:
		t.repeated++
		return
	}
	t.last = offset
}

// followCut follows the whole namespace host over a connection that is cut again and again, and counts what is missing.
func (d *demo) followCut(ctx context.Context) error {
	var line cutter
	client, err := runnel.Dial(d.addr, runnel.WithClientID("demo-cut"), runnel.WithDialOptions(grpc.WithContextDialer(line.dial)))
	if err != nil {
		return err
	}
	defer client.Close()
	connected := make(chan struct{}, 1)
	s, err := client.Session(ctx, runnel.OnState(func(s runnel.State) {
		if s == runnel.StateLive {
			select {
			case connected <- struct{}{}:
			default:
			}
		}
	}))
	if err != nil {
		return err
	}
	<-connected // the first time is no resumption
	sub, err := s.Subscribe(ctx, "host.>", runnel.From(runnel.Earliest()))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		tick := time.NewTicker(d.cutEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				d.board.say("* second follower: its connection is cut after offset %d", sub.Position().Offset)
				line.cut()
			}
		}
	})
	g.Go(func() error { return d.count(ctx, sub, connected) })
	return g.Wait()
}

// count reports, with the first event after each resumption, how many events were missed or came twice.
func (d *demo) count(ctx context.Context, sub *runnel.Subscription, resumed <-chan struct{}) error {
	var t tally
	for e, err := range sub.Events(ctx) {
		if err != nil {
			return err
		}
		t.count(e.Position.Offset)
		select {
		case <-resumed:
			d.board.say("* second follower: resumed at %d, %d missed, %d repeated", e.Position.Offset, t.missed, t.repeated)
			t.missed, t.repeated = 0, 0
		default:
		}
	}
	return ctx.Err()
}
