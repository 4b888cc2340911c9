package pebbleengine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// Power fails again and again under publishers. Under history disk nothing acknowledged is lost; under os what is left is a
// beginning of the log, whole and in order; in both, positions beyond what is left are refused.
func TestPowerLoss(t *testing.T) {
	for _, h := range []engine.History{engine.HistoryDisk, engine.HistoryOS} {
		t.Run(string(h), func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			rng := rand.New(rand.NewPCG(1, uint64(len(h))))
			var acked, kept []string // payloads, by offset
			for round := range 30 {
				fs, acked = runAndCrash(t, fs, rng, h, fmt.Sprint(round), kept)
				kept = checkAfterCrash(t, fs, h, acked)
			}
		})
	}
}

// runAndCrash publishes from several goroutines until power fails, and returns what is left of the disk and what had been
// acknowledged by then.
func runAndCrash(t *testing.T, fs *vfs.MemFS, rng *rand.Rand, h engine.History, round string, kept []string) (*vfs.MemFS, []string) {
	e, err := Open(Options{Dir: "data", FS: fs, Namespace: namespaces(window(h)), Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	l := logOf(t, e, "a")
	if s := l.State(); s.Head != uint64(len(kept)) {
		t.Fatalf("head %d at the start, want %d", s.Head, len(kept))
	}
	var mu sync.Mutex
	acked := append([]string(nil), kept...)
	ack := func(offset uint64, payload string) {
		mu.Lock()
		defer mu.Unlock()
		for uint64(len(acked)) < offset {
			acked = append(acked, "")
		}
		acked[offset-1] = payload
	}
	ctx, stop := context.WithCancel(t.Context())
	var count atomic.Int64
	enough := make(chan struct{})
	limit := 1 + rng.Int64N(60)
	var group sync.WaitGroup
	for p := range 4 {
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				payload := fmt.Sprintf("%s/%d/%d", round, p, i)
				res, err := l.Append(ctx, []engine.Entry{entry(t, "a.b", payload, payload)}, engine.AppendEach)
				if err != nil {
					return
				}
				ack(res[0].Offset, payload)
				if count.Add(1) == limit {
					close(enough)
				}
			}
		})
	}
	<-enough
	mu.Lock()
	sure := append([]string(nil), acked...) // everything acknowledged before the crash
	mu.Unlock()
	left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
	stop()
	group.Wait()
	return left, sure
}

func checkAfterCrash(t *testing.T, fs *vfs.MemFS, h engine.History, acked []string) []string {
	t.Helper()
	e, err := Open(Options{Dir: "data", FS: fs, Namespace: namespaces(window(h)), Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	l := logOf(t, e, "a")
	var kept []string
	for i, ev := range readAll(t, l, pattern(t, "a.>"), 0, 0) {
		if ev.GetOffset() != uint64(i+1) {
			t.Fatalf("offset %d at place %d", ev.GetOffset(), i+1)
		}
		kept = append(kept, string(ev.GetPayload()))
	}
	for i, want := range acked {
		if want == "" {
			continue // acknowledged after a later one, or never
		}
		if i >= len(kept) && h == engine.HistoryOS {
			break
		}
		if i >= len(kept) || kept[i] != want {
			t.Fatalf("acknowledged event %d (%s) is lost: %d are left", i+1, want, len(kept))
		}
	}
	s := l.State()
	var changed *engine.EpochChangedError
	if err := l.Check(engine.Position{Epoch: s.Epoch, Offset: s.Head + 1}); !errors.As(err, &changed) {
		t.Errorf("a position beyond the head: %v", err)
	}
	// An id of a lost event can be used again, one of a kept event cannot.
	if len(kept) > 0 {
		last := kept[len(kept)-1]
		if res := add(t, l, entry(t, "a.b", last, last)); !res[0].Duplicate || res[0].Offset != uint64(len(kept)) {
			t.Errorf("a kept event was stored again: %+v", res[0])
		}
	}
	return kept
}

// The promise of history os: what was acknowledged survives the death of the process.
func TestKill(t *testing.T) {
	const child = "RUNNEL_TEST_KILL_DIR"
	if dir := os.Getenv(child); dir != "" {
		publishForEver(t, dir)
		return
	}
	for _, h := range []engine.History{engine.HistoryOS, engine.HistoryDisk} {
		t.Run(string(h), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
			cmd.Env = append(os.Environ(), child+"="+dir, child+"_HISTORY="+string(h))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			acked := ""
			for lines := bufio.NewScanner(out); acked != "ack 300" && lines.Scan(); {
				acked = lines.Text()
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("the child ended by itself")
			}
			got := readAll(t, logOf(t, open(t, nil, dir, window(h)), "a"), pattern(t, "a.>"), 0, 0)
			if acked != "ack 300" || len(got) < 300 {
				t.Errorf("last acknowledgement %q, %d events are left", acked, len(got))
			}
		})
	}
}

func publishForEver(t *testing.T, dir string) {
	l := logOf(t, open(t, nil, dir, window(engine.History(os.Getenv("RUNNEL_TEST_KILL_DIR_HISTORY")))), "a")
	for {
		res := add(t, l, entry(t, "a.b", "", strings.Repeat("x", 20)))
		fmt.Printf("ack %d\n", res[0].Offset)
	}
}
