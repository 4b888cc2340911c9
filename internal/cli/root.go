// Package cli is the runnel command: every command is a user of the SDK, of package server, or of the configuration, like any
// other. Results go to stdout, everything else to stderr; exit codes are 0 (ok), 1 (failed) and 2 (usage).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

// connectTimeout is how long a command waits for a server that is not there.
const connectTimeout = 3 * time.Second

// app is what the commands share.
type app struct {
	server      string
	token       string
	compression string
	tls         clientTLS
	discovery   discovery
	in          io.Reader
	out         io.Writer
	err         io.Writer
	// understood says that the command line was correct and the command itself has begun.
	understood bool
	closing    []func() // called when the command has ended
}

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	// A reader that goes away (runnel sub | head -1) is an end, not a crash.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	for _, done := range a.closing {
		done()
	}
	switch {
	case err == nil || errors.Is(err, syscall.EPIPE):
		return 0
	case errors.Is(err, errSaid):
		return 1
	}
	fmt.Fprintf(a.err, "runnel: %s\n", a.explain(err))
	var usage usageError
	if !a.understood || errors.As(err, &usage) {
		return 2
	}
	return 1
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "runnel",
		Short: "Real-time streaming and push over gRPC: server and clients",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q; see runnel --help", args[0])
			}
			return nil
		},
		RunE:             func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(*cobra.Command, []string) { a.understood = true },
		SilenceUsage:     true,
		SilenceErrors:    true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%s; see %s --help", explainFlag(err), c.CommandPath())
	})
	server := os.Getenv("RUNNEL_SERVER")
	if server == "" {
		server = "127.0.0.1:50051"
	}
	root.PersistentFlags().StringVar(&a.server, "server", server, "address of the server, several with commas between, dns:///HOST:PORT or etcd:///SERVICE (RUNNEL_SERVER)")
	root.PersistentFlags().StringVar(&a.compression, "compression", "", "compress what goes over the wire: gzip or zstd (default not)")
	root.PersistentFlags().StringVar(&a.token, "token", os.Getenv("RUNNEL_TOKEN"), "bearer token (RUNNEL_TOKEN)")
	a.tls.flags(root.PersistentFlags())
	a.discovery.flags(root.PersistentFlags())
	root.PersistentFlags().Lookup("token").DefValue = "" // a help text must not show a secret
	root.AddCommand(a.demo(), a.demoWorker(), a.serve(), a.pub(), a.sub(), a.history(), a.topics(), a.replay(), a.bench(), a.benchLive(), a.config(), a.tokenCommand(), a.admin(), a.top(), a.version())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		choose(c, "bash, zsh, fish or powershell")
	}
	return root
}

// args checks the number of arguments; most < 0: no limit.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return usagef("%s takes %s, not %d arguments; see %s --help", c.CommandPath(), what, len(args), c.CommandPath())
		}
		return nil
	}
}

// choose makes a command that only groups others ask for one of them.
func choose(c *cobra.Command, names string) {
	c.Args = func(c *cobra.Command, _ []string) error {
		return usagef("say %s after %s; see %s --help", names, c.CommandPath(), c.CommandPath())
	}
	c.RunE = func(*cobra.Command, []string) error { return nil }
}

// dial returns a client that gives up on a first connection after a few seconds.
func (a *app) dial(opts ...runnel.Option) (*runnel.Client, error) {
	opts = append(opts, runnel.WithConnectTimeout(connectTimeout))
	if a.token != "" {
		opts = append(opts, runnel.WithToken(a.token))
	}
	if a.compression != "" {
		opts = append(opts, runnel.WithCompression(a.compression))
	}
	found, err := a.discovered()
	if err != nil {
		return nil, err
	}
	opts = append(opts, found...)
	secure, err := a.tls.option()
	if err != nil {
		return nil, err
	}
	if secure != nil {
		opts = append(opts, secure)
	}
	client, err := runnel.Dial(a.server, opts...)
	if err != nil {
		return nil, usageError{err}
	}
	return client, nil
}
