package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/server"
)

const (
	demoWorkers  = 3
	demoCutEvery = 10 * time.Second
)

func (a *app) demo() *cobra.Command {
	var length time.Duration
	var data string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a server on loopback and stream this machine's own live data through it",
		Args:  args(0, 0, "no arguments"),
	}
	c.Flags().DurationVar(&length, "for", 0, "end after this time; 0: on Ctrl-C")
	c.Flags().StringVar(&data, "data", "", "data directory (default a temporary one)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx := c.Context()
		if length > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, length)
			defer cancel()
		}
		if data == "" {
			dir, err := os.MkdirTemp("", "runnel-demo-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			data = dir
		}
		return (&demo{out: &lines{w: a.out}}).run(ctx, data)
	}
	return c
}

// lines writes whole lines from many goroutines.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, format+"\n", args...)
}

// demo is one run of the demo.
type demo struct {
	out    *lines
	addr   string
	client *runnel.Client
}

func (d *demo) run(ctx context.Context, data string) error {
	s, err := demoServer(data)
	if err != nil {
		return err
	}
	d.addr = s.Addr().String()
	d.out.printf("gRPC on %s", d.addr)
	d.out.printf("admin on http://%s (/metrics, /healthz, /readyz)", s.AdminAddr())
	d.out.printf("")
	d.out.printf("Try from another terminal:")
	flag := ""
	if d.addr != "127.0.0.1:50051" {
		flag = " --server " + d.addr
	}
	d.out.printf("  runnel sub 'host.>'%s", flag)
	d.out.printf("  runnel history 'process.>' --from -5 --json%s", flag)
	d.out.printf("  grpcurl -plaintext -d '{\"pattern\":\"host.>\"}' %s runnel.v1.StreamService/ListTopics", d.addr)
	d.out.printf("Kill a worker (kill -9 PID) to see it replaced. Ctrl-C ends everything.")
	d.out.printf("")

	// The server outlives everything that uses it.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	var server errgroup.Group
	server.Go(func() error { return s.Run(serving) })
	err = d.stream(ctx)
	stop()
	err = errors.Join(err, server.Wait())
	if err == nil {
		d.out.printf("demo ended")
	}
	return err
}

// demoServer listens on the default ports, or on free ones.
func demoServer(data string) (*server.Server, error) {
	cfg := server.Config{
		Data: data, Dev: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Defaults: server.Namespace{MaxAge: time.Hour, MaxBytes: 256 << 20},
	}
	for _, address := range []*string{&cfg.Listen, &cfg.Admin} {
		*address = map[*string]string{&cfg.Listen: "127.0.0.1:50051", &cfg.Admin: "127.0.0.1:9464"}[address]
		l, err := net.Listen("tcp", *address)
		if errors.Is(err, syscall.EADDRINUSE) {
			*address = "127.0.0.1:0"
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	return server.New(cfg)
}

// stream runs the publishers and followers until ctx ends or one of them fails.
func (d *demo) stream(ctx context.Context) error {
	var err error
	if d.client, err = runnel.Dial(d.addr, runnel.WithClientID("demo")); err != nil {
		return err
	}
	defer d.client.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.publishHost(ctx) })
	for i := range demoWorkers {
		g.Go(func() error { return d.supervise(ctx, i+1) })
	}
	g.Go(func() error { return d.follow(ctx) })
	g.Go(func() error { return d.followCut(ctx) })
	if err := g.Wait(); !ended(err) {
		return err
	}
	return nil
}

// ended tells the end that was asked for from a failure.
func ended(err error) bool {
	return err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, runnel.ErrClosed)
}

// follow prints what comes.
func (d *demo) follow(ctx context.Context) error {
	s, err := d.client.Session(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, pattern := range []string{"host.>", "process.>"} {
		sub, err := s.Subscribe(ctx, pattern)
		if err != nil {
			return err
		}
		g.Go(func() error {
			for e, err := range sub.Events(ctx) {
				if err != nil {
					return err
				}
				d.out.printf("%s  %-14s %5d  %s", e.Time.Format("15:04:05"), e.Topic, e.Position.Offset, shown(e.Payload))
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// cutter is a dialer whose connections can be cut.
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

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
}

// followCut follows the whole namespace host, in which offsets have no holes, over a connection that is cut again and again, and
// counts what is missing.
func (d *demo) followCut(ctx context.Context) error {
	var line cutter
	client, err := runnel.Dial(d.addr, cutDialer(&line), runnel.WithClientID("demo-cut"))
	if err != nil {
		return err
	}
	defer client.Close()
	sub, err := client.Subscribe(ctx, "host.>", runnel.From(runnel.Earliest()))
	if err != nil {
		return err
	}
	cuts := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		tick := time.NewTicker(demoCutEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
				cuts <- struct{}{} // before the cut: the next event may come through what is left of the connection
				line.cut()
				d.out.printf("--- the second follower's connection was cut after offset %d", sub.Position().Offset)
			}
		}
	})
	g.Go(func() error {
		next, missed := uint64(0), uint64(0)
		for e, err := range sub.Events(ctx) {
			if err != nil {
				return err
			}
			if o := e.Position.Offset; next != 0 && o > next {
				missed += o - next
			}
			next = e.Position.Offset + 1
			select {
			case <-cuts:
				d.out.printf("--- resumed at %d, %d missed", e.Position.Offset, missed)
			default:
			}
		}
		return ctx.Err()
	})
	return g.Wait()
}
