// Package system knows the systems that are compared: how each is started as a process of its own, how a subscriber speaks to it, and
// how events get in.
package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/runnelhq/runnel/bench/wire"
	"github.com/runnelhq/runnel/internal/compress"
	"github.com/runnelhq/runnel/internal/load"
)

// System is one of those compared. Subscribers and publisher are of this process; the server is another.
type System struct {
	Name        string
	Help        string
	Compression string // of what is received; empty where that is not compared

	// start prepares the command that serves, with its data in dir.
	start func(dir string) (*exec.Cmd, error)
	// Hello is what a subscriber of a topic writes first, and Parser what reads the rest.
	Hello  func(topic string) []byte
	Parser func(topic string) func(wire.Events) wire.Parser
	// Publisher connects whoever publishes.
	Publisher func(ctx context.Context, address string) (Publisher, error)

	// Client, where there is one, is a full client of the system in this process, and takes the place of Hello and Parser. It tells what
	// comes, from one goroutine, until the function it returns is called; ctx is not the way to end it.
	Client func(ctx context.Context, address, topic string, to wire.Events) (stop func() error, err error)
	// Duplex, where there is one, subscribes and publishes on one stream.
	Duplex func(ctx context.Context, address, topic string, to wire.Events) (Publisher, error)
	// Acked, where there is one, connects publishers that wait for each acknowledgement.
	Acked func(ctx context.Context, address string) (Acked, error)
}

// Acked publishes an event and waits until it is acknowledged. Publish may be called by many goroutines at a time.
type Acked struct {
	Publish func(ctx context.Context, topic string, payload []byte) error
	Close   func() error
}

// Publisher sends events. It belongs to one goroutine.
type Publisher interface {
	// Publish sends an event, or puts it where Flush will. The payload may be used again afterwards.
	Publish(topic string, payload []byte) error
	// Flush sends what is waiting. It is called whenever nothing more is due now.
	Flush() error
	Close() error
}

// All lists the systems.
func All() []*System {
	return []*System{
		runnelServer("runnel", "none"), runnelServer("runnel-memory", "memory"), runnelServer("runnel-os", "os"), runnelServer("runnel-disk", "disk"),
		runnelSession(), textbook(), nats(), jetStream("jetstream", "NATS JetStream in files, forced to disk now and then"),
		jetStream("jetstream-sync", "NATS JetStream in files, forced to disk before each acknowledgement"),
		poll1(), pollAll(), tcp(), grpcEcho(), runnelSDK(), runnelGenerated(), natsSDK(), textbookSDK(),
		compressed(Identity), compressed(compress.Gzip), compressed(compress.Zstd),
	}
}

// Find returns the system of that name.
func Find(name string) (*System, error) {
	var names []string
	for _, s := range All() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return nil, fmt.Errorf("there is no system %q; say some of %s", name, strings.Join(names, ","))
}

// serveFlag makes this program a server of the system named behind it.
const serveFlag = "-serve-system"

var servers = map[string]func(ctx context.Context) (address string, wait func() error, err error){}

// MaybeServe makes this process a server, if its command line says so, and never returns then. It must be called first in main.
func MaybeServe() {
	if len(os.Args) != 3 || os.Args[1] != serveFlag {
		return
	}
	if err := serveUntilEOF(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveUntilEOF serves as long as its parent keeps stdin open.
func serveUntilEOF(name string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if servers[name] == nil {
		return fmt.Errorf("there is no server %q", name)
	}
	defer collectOnSignal()()
	address, wait, err := servers[name](ctx)
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", address)
	_, err = io.Copy(io.Discard, os.Stdin)
	cancel()
	return errors.Join(err, wait())
}

// own starts this program again as a server.
func own(name string) func(string) (*exec.Cmd, error) {
	return func(string) (*exec.Cmd, error) {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return exec.Command(exe, serveFlag, name), nil
	}
}

// Server is a running server process.
type Server struct {
	Address string
	Process load.Process
	cmd     *exec.Cmd
	stdin   io.Closer
}

// Start starts the system's server and waits until it says its address. The process ends with this one.
func (s *System) Start(dir string) (*Server, error) {
	cmd, err := s.start(dir)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = plainEnv()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		// "... on HOST:PORT", the last word of the first line that has one.
		words := strings.Fields(lines.Text())
		if n := len(words); n > 0 && strings.HasPrefix(words[n-1], "127.0.0.1:") {
			return &Server{words[n-1], load.Process{PID: cmd.Process.Pid}, cmd, stdin}, nil
		}
	}
	stdin.Close()
	return nil, fmt.Errorf("%s did not start: %w: %s", s.Name, cmd.Wait(), strings.TrimSpace(stderr.String()))
}

// plainEnv is the environment without what configures servers.
func plainEnv() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "RUNNEL_") {
			env = append(env, v)
		}
	}
	return env
}

// Stop ends the server.
func (s *Server) Stop() {
	s.stdin.Close()
	s.cmd.Process.Signal(syscall.SIGKILL) // it holds nothing worth a farewell
	s.cmd.Wait()
}
