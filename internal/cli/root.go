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
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errQuiet ends a command with exit code 1 when everything was said.
var errQuiet = errors.New("")

// app is what the commands share.
type app struct {
	server string
	token  string
	in     io.Reader
	out    io.Writer
	err    io.Writer
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
	var usage usageError
	switch {
	case err == nil || errors.Is(err, syscall.EPIPE):
		return 0
	case errors.Is(err, errQuiet):
		return 1
	case errors.As(err, &usage):
		fmt.Fprintf(a.err, "runnel: %s\n", oneLine(err))
		return 2
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 0 // interrupted, as asked
	}
	fmt.Fprintf(a.err, "runnel: %s\n", a.explain(err))
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
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, c.CommandPath())
	})
	server, ok := os.LookupEnv("RUNNEL_SERVER")
	if !ok {
		server = "127.0.0.1:50051"
	}
	root.PersistentFlags().StringVar(&a.server, "server", server, "address of the server (RUNNEL_SERVER)")
	root.PersistentFlags().StringVar(&a.token, "token", os.Getenv("RUNNEL_TOKEN"), "bearer token (RUNNEL_TOKEN)")
	if f := root.PersistentFlags().Lookup("token"); f.DefValue != "" {
		f.DefValue = "" // a help text must not show a secret
	}
	root.AddCommand(a.demo(), a.serve(), a.pub(), a.sub(), a.history(), a.topics(), a.replay(), a.config(), a.version(), worker(a))
	return root
}

// args checks the number of arguments.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return usagef("%s takes %s, not %d arguments; see %s --help", c.CommandPath(), what, len(args), c.CommandPath())
		}
		return nil
	}
}

// dial returns a client that gives up on a first connection after a few seconds.
func (a *app) dial() (*runnel.Client, error) {
	opts := []runnel.Option{runnel.WithConnectTimeout(3 * time.Second)}
	if a.token != "" {
		opts = append(opts, runnel.WithToken(a.token))
	}
	return runnel.Dial(a.server, opts...)
}

// explain says in one line what went wrong and what to do.
func (a *app) explain(err error) string {
	var e *runnel.Error
	if !errors.As(err, &e) {
		return oneLine(err)
	}
	switch {
	case e.Code == codes.Unavailable && !e.FromServer:
		return oneLine(fmt.Errorf("cannot reach a Runnel server at %s (%s); start one with \"runnel serve --dev\" or name another with --server", a.server, e.Message))
	case e.Code == codes.Unimplemented && !e.FromServer:
		return fmt.Sprintf("the server at %s is not a Runnel server, or of another version", a.server)
	case e.Reason == runnel.ReasonUnknownNamespace:
		return oneLine(fmt.Errorf("%w; add it to the server's configuration, or start the server with --dev", err))
	case e.Reason == runnel.ReasonPositionGone:
		return oneLine(fmt.Errorf("%w; start with --from earliest to read what is left", err))
	case e.Reason == runnel.ReasonEpochChanged:
		return oneLine(fmt.Errorf("%w; start with --from earliest or --from new", err))
	}
	return oneLine(err)
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
