//go:build unix

package cli

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// The whole demo: real figures, workers that are replaced, a follower that is cut and misses nothing, and an end that leaves
// nothing behind.
func TestDemo(t *testing.T) {
	out := newSyncBuffer()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d := &demo{a: &app{out: out, err: os.Stderr}, listen: taken.Addr().String(), admin: "127.0.0.1:0", cutEvery: 300 * time.Millisecond}
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx, t.TempDir()) }()
	p := &child{t: t, output: out}

	first := p.await(`\* worker 2 runs as pid (\d+)\n`)[1]
	for _, topic := range []string{"cpu", "mem", "load", "disk", "net"} {
		p.await(`\n\d\d:\d\d:\d\d host\.` + topic + ` +\d+  \S+ [0-9.]+`)
	}
	p.await(`\n\S+ process\.` + first + ` +\d+  pid ` + first + `  cpu `)
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(`\* worker 2 \(pid ` + first + `\) is dead \(signal: killed\); starting another\n`)
	p.await(`(?s)starting another\n.*\* worker 2 runs as pid \d+\n`)
	p.await(`(?s)(resumed at \d+, 0 missed, 0 repeated\n.*){3}`)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	text := out.String()
	if addr := regexp.MustCompile(`\d+\.\d+\.\d+\.\d+:\d+`).FindString(text); addr != d.addr || addr == taken.Addr().String() {
		t.Errorf("the first address is %s, gRPC is on %s", addr, d.addr)
	}
	if strings.Contains(strings.ReplaceAll(text, ", 0 missed", ""), "missed") || !strings.HasSuffix(text, "demo ended\n") {
		t.Errorf("%s", text)
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(line)); n > 80+1 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, m := range regexp.MustCompile(`runs as pid (\d+)`).FindAllStringSubmatch(text, -1) {
		if pid, err := strconv.Atoi(m[1]); err != nil || syscall.Kill(pid, 0) == nil {
			t.Errorf("worker %s is left behind: %v", m[1], err)
		}
	}
}

// As a command it ends by itself or with Ctrl-C.
func TestDemoCommand(t *testing.T) {
	p := start(t, nil, "demo")
	p.await(`^runnel: serving gRPC on 127\.0\.0\.1:\d+\n`)
	p.await(`  grpcurl -plaintext 127\.0\.0\.1:\d+ `)
	p.await(` process\.\d+ +\d+ `)
	p.signal(os.Interrupt)
	p.end(0)
	start(t, nil, "demo", "--for", "10ms").end(0)
}

// A worker reports about itself, and ends when its stdin does: whoever started it is gone then.
func TestDemoWorker(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	sub, err := s.Client().Subscribe(t.Context(), "process.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, r, workerCommand, "--server", s.Addr)
	r.Close()
	e, err := sub.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var f processFigure
	if err := json.Unmarshal(e.Payload, &f); err != nil || f.PID != p.Process.Pid || f.RSS == 0 || e.Topic != processTopic(f.PID) {
		t.Errorf("%s %s, %v", e.Topic, e.Payload, err)
	}
	w.Close()
	p.end(0)
}

func TestTally(t *testing.T) {
	var c tally
	for _, offset := range []uint64{5, 6, 9, 8, 10, 10, 12} {
		c.count(offset)
	}
	if c.missed != 3 || c.repeated != 2 || c.last != 12 {
		t.Errorf("%+v", c)
	}
}

func TestNetworkRates(t *testing.T) {
	var h hostReader
	at := time.Unix(1_000_000, 0)
	h.network(1<<20, 1<<20, at)
	if f := h.network(3<<20, 1<<20+512, at.Add(2*time.Second)); f != (netFigure{1024, 0.3}) {
		t.Errorf("%+v", f)
	}
	if f := h.network(0, 0, at.Add(3*time.Second)); f != (netFigure{}) { // a counter that began anew
		t.Errorf("%+v", f)
	}
}
