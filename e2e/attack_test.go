package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// siege is what an attack works with.
type siege struct {
	*testing.T
	addr   string
	long   bool
	thrown atomic.Int64
	note   string   // what became of the attacker
	after  []func() // what ends the attack
}

func (s *siege) run(attack func(*siege)) {
	defer func() {
		for _, f := range s.after {
			f()
		}
	}()
	attack(s)
}

// times is how much an attack throws: in the short form, and in the long one.
func (s *siege) times(short, long int) int {
	if s.long {
		return long
	}
	return short
}

// patience is how long an attacker waits for a server that takes nothing.
func (s *siege) patience() time.Duration {
	if s.long {
		return 5 * time.Second
	}
	return 300 * time.Millisecond
}

var attacks = []struct {
	name string
	run  func(*siege)
}{
	{"rapid reset", rapidReset},
	{"made you reset", madeYouReset},
	{"ping flood", pingFlood},
	{"settings flood", settingsFlood},
	{"window update flood", windowUpdateFlood},
	{"empty data flood", emptyDataFlood},
	{"priority flood", priorityFlood},
	{"reset flood", resetFlood},
	{"continuation bomb", continuationBomb},
	{"empty continuations", emptyContinuations},
	{"header bombs", headerBombs},
	{"stalled openings", stalledOpenings},
	{"zero windows", zeroWindows},
	{"gzip bombs", gzipBombs},
	{"zstd bombs", zstdBombs},
	{"message lengths", messageLengths},
	{"unfinished messages", unfinishedMessages},
	{"broken messages", brokenMessages},
	{"subscribe commands", subscribeCommands},
	{"unsubscribe commands", unsubscribeCommands},
	{"publish storm", publishStorm},
	{"connect and cancel", connectAndCancel},
}

const (
	// mostResident bounds what the server may hold under any attack. The Go runtime, Pebble's caches and tables, and the windows and
	// pages of the history that attacks ask for come to less than 200 MiB; what grows with an attack would pass any bound.
	mostResident = 300 << 20
	// mostResidentLong is for the long form. There, 20,000 streams are open at once, of about 12 KiB each, and the ids of 200,000 events
	// are remembered, both of which limits of their own bound. What grows with 100,000 connections or commands would pass it too.
	mostResidentLong = 600 << 20
	// moreGoroutines are those that the server may have for reasons of its own: compactions, commits, a scrape.
	moreGoroutines = 10
)

// TestAttack throws what hostile clients throw at a server, beside a bystander who notices nothing but, at worst, delay. What delay is in
// the log: it is not judged, since it depends on the machine. RUNNEL_ATTACKS=1 is the long form (make attacks).
func TestAttack(t *testing.T) {
	var faults errorLines
	p := &process{t: t, binary: binary(t), addr: freeAddress(t), admin: freeAddress(t), data: t.TempDir(), log: &faults,
		env: []string{"GOMEMLIMIT=off"}} // memory is bounded by the server, not by its collector's zeal
	p.start()
	t.Cleanup(p.kill)
	publishPast(t, p.addr)
	calm := newBystander(t, p.addr)
	long := os.Getenv("RUNNEL_ATTACKS") != ""
	table := []string{fmt.Sprintf("%-20s %9s | %9s %9s | %6s %6s %6s | %6s %6s |", "attack", "thrown", "p99 calm", "under", "MiB", "peak", "after", "gorout", "after")}
	for _, a := range attacks {
		t.Run(strings.ReplaceAll(a.name, " ", "_"), func(t *testing.T) {
			s := &siege{T: t, addr: p.addr, long: long}
			time.Sleep(time.Duration(s.times(100, 1000)) * time.Millisecond) // what the bystander sees without an attack
			before, resident, goroutines := calm.lap(), residentBytes(t, p.cmd.Process.Pid), p.goroutines(t)
			p.resetPeak()
			s.run(a.run)
			during := calm.lap()
			calm.settle(t, 0)
			peak := p.peakBytes(t)
			left := p.awaitGoroutines(t, goroutines+moreGoroutines)
			table = append(table, fmt.Sprintf("%-20s %9d | %6.1f ms %6.1f ms | %6d %6d %6d | %6d %6d | %s", a.name, s.thrown.Load(),
				float64(before.ValueAtQuantile(99))/1000, float64(during.ValueAtQuantile(99))/1000,
				resident>>20, peak>>20, residentBytes(t, p.cmd.Process.Pid)>>20, goroutines, left, s.note))
			if most := int64(s.times(mostResident, mostResidentLong)); peak > most {
				t.Errorf("the server held %d MiB, at most %d are allowed", peak>>20, most>>20)
			}
			calm.lap()
		})
	}
	if n := faults.Load(); n > 0 {
		t.Errorf("clients made the server log %d errors", n)
	}
	t.Log("\n" + strings.Join(table, "\n"))
}

// errorLines counts errors in a log. What a client does is no fault of the server's, and must not fill its log.
type errorLines struct{ atomic.Int64 }

func (n *errorLines) Write(b []byte) (int, error) {
	n.Add(int64(bytes.Count(b, []byte("level=ERROR"))))
	return len(b), nil
}

// awaitGoroutines waits until the server has few goroutines again.
func (p *process) awaitGoroutines(t *testing.T, most int) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // polling another process
		n := p.goroutines(t)
		if n <= most {
			return n
		}
		if time.Now().After(deadline) {
			t.Errorf("the server has %d goroutines, at most %d are allowed", n, most)
			return n
		}
	}
}

// publishPast publishes 50 MiB to the topic past.t, for those who ask for it and do not read it.
func publishPast(t *testing.T, addr string) {
	t.Helper()
	api, conn, err := dialAPI(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := api.PublishStream(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err := stream.Send(&runnelv1.PublishRequest{Topic: "past.t", Payload: make([]byte, 256<<10)}); err != nil {
			break // the answer says why
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
}
