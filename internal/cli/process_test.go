//go:build unix

package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// child is a runnel command that runs beside the test.
type child struct {
	*exec.Cmd
	t      *testing.T
	output *syncBuffer // stdout and stderr
}

// start runs the command in a process of its own; it is killed when the test ends.
func start(t *testing.T, stdin *os.File, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &child{Cmd: exec.Command(self, args...), t: t, output: newSyncBuffer()}
	p.Args[0] = "runnel"
	p.Dir = t.TempDir()
	if stdin != nil {
		p.Stdin = stdin
	}
	p.Stdout, p.Stderr = p.output, p.output
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	return p
}

// await waits until the output matches and returns the submatches.
func (p *child) await(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		changed := p.output.changed()
		if m := re.FindStringSubmatch(p.output.String()); m != nil {
			return m
		}
		select {
		case <-changed:
		case <-limit.C:
			p.t.Fatalf("no %q in\n%s", pattern, p.output.String())
		}
	}
}

// end waits for the process and checks its exit code.
func (p *child) end(code int) {
	p.t.Helper()
	if _ = p.Wait(); p.ProcessState.ExitCode() != code {
		p.t.Fatalf("%v: %v, want exit code %d:\n%s", p.Args, p.ProcessState, code, p.output.String())
	}
}

func (p *child) signal(s os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// syncBuffer collects what a process prints.
type syncBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // closed with the next write
}

func newSyncBuffer() *syncBuffer { return &syncBuffer{more: make(chan struct{})} }

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.more)
	s.more = make(chan struct{})
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// changed is closed with the next write.
func (s *syncBuffer) changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.more
}

// runServe starts a server as a process and returns it and its address.
func runServe(t *testing.T, data string, more ...string) (*child, string) {
	t.Helper()
	p := start(t, nil, append([]string{"serve", "--dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data", data}, more...)...)
	return p, p.await(`^runnel: serving gRPC on (127\.0\.0\.1:\d+)\nrunnel: admin on http://127\.0\.0\.1:\d+ `)[1]
}

func TestServe(t *testing.T) {
	data := t.TempDir()
	p, addr := runServe(t, data)
	start(t, nil, "pub", "a.b", "kept", "--server", addr).end(0)

	locked := start(t, nil, "serve", "--dev", "--listen", "127.0.0.1:0", "--admin", "off", "--data", data)
	locked.end(1)
	taken := start(t, nil, "serve", "--dev", "--listen", addr, "--admin", "off", "--data", t.TempDir())
	taken.end(1)
	for what, out := range map[string]string{data: locked.output.String(), addr + ": the address is in use": taken.output.String()} {
		if !strings.HasPrefix(out, "runnel: ") || strings.Count(out, "\n") != 1 || !strings.Contains(out, what) {
			t.Errorf("%q", out)
		}
	}

	p.signal(syscall.SIGTERM)
	p.end(0)
	_, addr = runServe(t, data)
	again := start(t, nil, "history", "a.b", "--server", addr)
	again.end(0)
	if !strings.HasSuffix(again.output.String(), " a.b 1 kept\n") {
		t.Errorf("%q", again.output)
	}
}

// A second interrupt ends a server at once, however long it would still wait for its clients.
func TestServeSecondInterrupt(t *testing.T) {
	p, addr := runServe(t, t.TempDir())
	sub := start(t, nil, "sub", "a.b", "--from", "earliest", "--server", addr)
	start(t, nil, "pub", "a.b", "x", "--server", addr).end(0)
	sub.await(` a\.b 1 x\n`)
	sub.signal(syscall.SIGSTOP) // it cannot leave
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	again := time.NewTicker(20 * time.Millisecond) // an interrupt that comes too soon after another is the same one
	defer again.Stop()
	for {
		select {
		case <-again.C:
			_ = p.Process.Signal(os.Interrupt) // it may just have ended
		case <-ended:
			if status, ok := p.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGINT {
				t.Errorf("%v", p.ProcessState)
			}
			return
		}
	}
}

// sub shows what it gets while it gets it, goes on through a restart of the server, and ends cleanly on Ctrl-C.
func TestSubThroughRestart(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	c := s.Client()
	publish := func(payload string) {
		t.Helper()
		if _, err := c.Publish(t.Context(), "a.b", []byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	publish("one")
	p := start(t, nil, "sub", "a.>", "--from", "earliest", "--server", s.Addr)
	p.await(` a\.b 1 one\n`)
	s.Stop()
	p.await(`runnel: the connection to \S+ broke; trying again\n`)
	s.Start()
	p.await(`runnel: connected to \S+ again\n`)
	publish("two")
	p.await(` a\.b 2 two\n`)
	p.signal(os.Interrupt)
	p.end(0)
	if n := strings.Count(p.output.String(), " a.b "); n != 2 {
		t.Errorf("%d events:\n%s", n, p.output)
	}
}

// tail -f | runnel pub --lines: lines are stored as they come, and Ctrl-C is the end.
func TestLinesUntilInterrupt(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	c := s.Client()
	sub, err := c.Subscribe(t.Context(), "a.b")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := start(t, r, "pub", "a.b", "--lines", "--json", "--server", s.Addr)
	r.Close()
	for _, line := range []string{"one", "two"} {
		if _, err := fmt.Fprintln(w, line); err != nil {
			t.Fatal(err)
		}
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != line {
			t.Fatalf("%q, %v", e.Payload, err)
		}
	}
	p.signal(os.Interrupt)
	p.end(0)
	if !strings.HasPrefix(p.output.String(), `{"received":"2","accepted":"2","firstFailedIndex":"-1","lastOffset":"2"`) {
		t.Errorf("%s", p.output)
	}
}

// A server that is killed while lines are uploaded, and comes back, has every line once and in order.
func TestLinesThroughKill(t *testing.T) {
	data := t.TempDir()
	p, addr := runServe(t, data)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	pub := start(t, r, "pub", "a.b", "--lines", "--json", "--server", addr)
	r.Close()
	const rounds, each = 3, 20_000
	want := make([]string, 0, rounds*each)
	for round := range rounds {
		for range each {
			want = append(want, strconv.Itoa(len(want)))
			if _, err := fmt.Fprintln(w, want[len(want)-1]); err != nil {
				t.Fatal(err)
			}
		}
		if round < rounds-1 {
			p.signal(syscall.SIGKILL)
			p.end(-1)
			p = start(t, nil, "serve", "--dev", "--listen", addr, "--admin", "off", "--data", data)
		}
	}
	w.Close()
	pub.end(0)
	if !regexp.MustCompile(`(?m)^\{"received":"60000","accepted":"60000",.*"lastOffset":"60000",`).MatchString(pub.output.String()) {
		t.Errorf("%s", pub.output)
	}
	all := start(t, nil, "history", "a.b", "--server", addr)
	all.end(0)
	lines := strings.Split(strings.TrimSuffix(all.output.String(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines of %d", len(lines), len(want))
	}
	for i, line := range lines {
		if !strings.HasSuffix(line, fmt.Sprintf(" a.b %d %d", i+1, i)) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// SIGHUP reads the configuration again: what is wrong is told with its line, and changes nothing.
func TestHangup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runnel.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const base = "listen: 127.0.0.1:0\nadmin: off\nnamespaces: {a: }\n"
	write(base)
	p := start(t, nil, "serve", "--config", path)
	p.await(`serving gRPC on`)
	write(base + "limits:\n  client_publish_rate: many\n")
	p.signal(syscall.SIGHUP)
	p.await(`level=ERROR msg="the configuration was not reloaded" err="[^\n]*runnel.yaml:5: limits.client_publish_rate`)
	write(base + "limits:\n  client_publish_rate: 5\n")
	p.signal(syscall.SIGHUP)
	p.await(`level=INFO msg="roles, limits, namespaces and the log level were reloaded"`)
	write(base + "send_timeout: 7s\n")
	p.signal(syscall.SIGHUP)
	p.await(`level=WARN [^\n]* changed=\[send_timeout\]`)
	write(base + "discovery: {etcd: {endpoints: [127.0.0.1:1], service: quotes}}\nlog_format: json\nlog_level: error\nmax_stream_age: 1h\nissuers: {i: {issuer: x, audience: y, algorithms: RS256, jwks: http://127.0.0.1:1/k}}\nroles: {r: {authenticated: true, subscribe: [a.>]}}\n")
	p.signal(syscall.SIGHUP)
	p.await(`level=ERROR msg="the configuration was not reloaded" err="authentication cannot be switched`)
	write(base + "discovery: {etcd: {endpoints: [127.0.0.1:1], service: quotes}}\nlog_format: json\n")
	p.signal(syscall.SIGHUP) // the level is still info, or this would not be logged
	p.await(`level=WARN [^\n]* changed="?\[[^\n]*discovery.etcd log_format\]`)
	p.signal(os.Interrupt)
	p.end(0)
}
