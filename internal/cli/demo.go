package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/server"
)

const demoWorkers = 3

func (a *app) demo() *cobra.Command {
	d := &demo{a: a, listen: "127.0.0.1:50051", admin: "127.0.0.1:9464", cutEvery: 10 * time.Second}
	var length time.Duration
	var data string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a server on loopback and stream this machine's own live data through it",
		Long: "Run a server on loopback with a temporary data directory. This machine's figures go to host.cpu, host.mem, host.load,\n" +
			"host.disk and host.net once a second; three worker processes report theirs to process.PID. One follower prints all of\n" +
			"it; the connection of a second one is cut every 10 s, and it says where it resumed and how many events it missed.",
		Args: args(0, 0, "no arguments"),
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
		return d.run(ctx, data)
	}
	return c
}

// demo is one run of the demo.
type demo struct {
	a             *app
	listen, admin string // where free ports are used if these are taken
	cutEvery      time.Duration

	addr   string // of gRPC
	client *runnel.Client
	board  *board
}

func (d *demo) run(ctx context.Context, data string) error {
	s, err := d.server(data)
	if err != nil {
		return err
	}
	d.a.announce(s)
	d.addr = s.Addr().String()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.board = newBoard(d.a.out, cancel)
	var screen errgroup.Group
	screen.Go(d.board.run)
	d.explain()

	// The server outlives everything that uses it.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var server errgroup.Group
	server.Go(func() error {
		defer cancel()
		return s.Run(serving)
	})
	err = d.stream(ctx)
	stop()
	err = errors.Join(err, server.Wait())
	d.board.close()
	if err = errors.Join(err, screen.Wait()); err == nil {
		_, err = fmt.Fprintln(d.a.out, "demo ended")
	}
	return err
}

// explain says what is to be seen and what to try.
func (d *demo) explain() {
	program, flag := program(), ""
	if d.addr != d.listen {
		flag = " --server " + d.addr
	}
	d.board.say("")
	d.board.say("This machine reports to host.*, and three worker processes to process.*.")
	d.board.say("Try from another terminal:")
	d.board.say("  %s sub 'host.>'%s", program, flag)
	d.board.say("  %s history 'process.>' --from -3 --json%s", program, flag)
	d.board.say("  grpcurl -plaintext %s list runnel.v1.StreamService", d.addr)
	d.board.say("Kill a worker (kill -9 PID) to see it replaced. Ctrl-C ends everything.")
	d.board.say("")
}

// program is how this program can be called again.
func program() string {
	if _, err := exec.LookPath("runnel"); err == nil {
		return "runnel"
	}
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/runnel"
	}
	return os.Args[0]
}

// server listens on the default ports, or on free ones where those are taken.
func (d *demo) server(data string) (*server.Server, error) {
	return server.New(server.Config{
		Listen: freeAddress(d.listen), Admin: freeAddress(d.admin), Data: data, Dev: true,
		Defaults:     server.Namespace{MaxAge: time.Hour, MaxBytes: 256 << 20},
		DrainTimeout: 5 * time.Second,
		Logger:       slog.New(slog.NewTextHandler(d.a.err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

func freeAddress(address string) string {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return "127.0.0.1:0"
	}
	if err == nil {
		l.Close()
	}
	return address // what else is wrong with it, the server will say
}

// stream runs the publishers and followers until ctx ends or one of them fails.
func (d *demo) stream(ctx context.Context) error {
	var err error
	if d.client, err = runnel.Dial(d.addr, runnel.WithClientID("demo")); err != nil {
		return err
	}
	defer d.client.Close()
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return d.publishHost(running) })
	for i := range demoWorkers {
		g.Go(func() error { return d.supervise(running, i+1) })
	}
	g.Go(func() error { return d.follow(running) })
	g.Go(func() error { return d.followCut(running) })
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil // it was to end
}
