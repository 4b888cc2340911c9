package pebbleengine

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/engine"
)

func TestSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.Uint64Range(1, 1<<40).Draw(t, "low")
		high := low + rapid.Uint64Range(1, 1<<20).Draw(t, "length")
		want := rapid.Uint64Range(low+1, high).Draw(t, "within")
		got, err := search(low, high, func(offset uint64) (bool, error) {
			if offset <= low || offset >= high {
				t.Fatalf("probe at %d, outside %d..%d", offset, low, high)
			}
			return offset < want, nil
		})
		if got != want || err != nil {
			t.Fatalf("search(%d, %d) = %d, %v; want %d", low, high, got, err, want)
		}
	})
}

// Whatever moves the trim point, after every append exactly the events within the limits are left, and a crash brings nothing back.
func TestTrimIsExactAndDurable(t *testing.T) {
	const size = valueHeader + 23 // of the events below
	limits := map[string]engine.Config{
		"events": {MaxEvents: 5}, "bytes": {MaxBytes: 5*size + 3}, "age": {MaxAge: 5*time.Second - time.Millisecond},
		"all": {MaxEvents: 5, MaxBytes: 6 * size, MaxAge: time.Minute},
	}
	for name, cfg := range limits {
		t.Run(name, func(t *testing.T) {
			var now atomic.Int64
			now.Store(1e12)
			fs := vfs.NewCrashableMem()
			cfg.History = engine.HistoryDisk
			o := Options{Dir: "data", FS: fs, Namespace: namespaces(cfg), Logger: discard,
				Now: func() time.Time { return time.UnixMilli(now.Load()) }}
			l := openLog(t, o)
			for i := 1; i <= 200; i++ {
				now.Add(1000)
				add(t, l, entry(t, fmt.Sprintf("a.%03d", i%20), "", "12345"))
				if s := l.State(); s.Head != uint64(i) || s.Oldest != uint64(max(1, i-4)) {
					t.Fatalf("after %d events: %+v", i, s)
				}
			}
			// Power fails, the clock falls back, the limits are gone: what was trimmed stays trimmed.
			now.Store(1e12)
			o.FS, o.Namespace = fs.CrashClone(vfs.CrashCloneCfg{}), namespaces(engine.Config{History: engine.HistoryDisk})
			l = openLog(t, o)
			if s := l.State(); s.Head != 200 || s.Oldest != 196 {
				t.Errorf("after a crash: %+v", s)
			}
			res := add(t, l, entry(t, "a.b", "", ""))
			if res[0].Offset != 201 || res[0].Timestamp != 1e12+200*1000 {
				t.Errorf("after a crash: %+v; a timestamp falls", res[0])
			}
		})
	}
}

func openLog(t *testing.T, o Options) engine.Log {
	t.Helper()
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return logOf(t, e, "a")
}

// Events grow old while nothing is appended.
func TestAgeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := engine.Config{History: engine.HistoryMemory, MaxAge: time.Hour}
		l := openLog(t, Options{Dir: "data", FS: vfs.NewMem(), Namespace: namespaces(cfg), Logger: discard})
		add(t, l, entry(t, "a.b", "", "x"))
		time.Sleep(59 * time.Minute)
		if s := l.State(); s.Oldest != 1 {
			t.Errorf("before its time: %+v", s)
		}
		time.Sleep(3 * time.Minute)
		if s := l.State(); s.Oldest != 2 || s.Head != 1 {
			t.Errorf("after its time: %+v", s)
		}
		if list, _, err := l.Topics(t.Context(), pattern(t, "a.>"), "", 10); err != nil || len(list) != 0 {
			t.Errorf("topics without events: %v, %v", list, err)
		}
	})
}

// Trimmed events, their index and the topics that have no others leave the disk.
func TestTrimmedKeysAreDeleted(t *testing.T) {
	e := open(t, vfs.NewMem(), "data", engine.Config{History: engine.HistoryOS, MaxEvents: 100})
	l := logOf(t, e, "a")
	const events = 3 << bucketBits
	for i := 0; i < events; i += 1024 {
		batch := make([]engine.Entry, 1024)
		for j := range batch {
			batch[j] = entry(t, fmt.Sprintf("a.%d", (i+j)/16), "", "")
		}
		add(t, l, batch...)
	}
	add(t, l, entry(t, "a.0", "", "still in use"))
	e.mu.Lock()
	inner := e.logs[0]
	e.mu.Unlock()
	db, err := e.disk.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer e.disk.release()
	for kind, most := range map[byte]int{kindLog: deleteEvents + 100, kindIndex: 1<<bucketBits + 100, kindTopic: 1<<bucketBits/16 + 8} {
		eventually(t, fmt.Sprintf("at most %d keys of kind %c", most, kind), func() bool {
			return countKeys(t, db, prefix(kind, inner.id)) <= most
		})
	}
	if s, ok, err := l.Topic(t.Context(), entry(t, "a.0", "", "").Topic); err != nil || !ok || s.Newest != events+1 || s.Oldest != events+1 {
		t.Errorf("a topic in use: %+v, %v, %v", s, ok, err)
	}
}

// eventually waits for what the committer does in its own time.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("still waiting for " + what)
		}
	}
}

func countKeys(t *testing.T, db *pebble.DB, p []byte) (n int) {
	t.Helper()
	if err := scan(db, p, after(p), func(_, _ []byte) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// Readers race with trimming: each page is whole or refused, never with a silent hole.
func TestReadersRaceWithTrimming(t *testing.T) {
	e := open(t, vfs.NewMem(), "data", engine.Config{History: engine.HistoryOS, MaxEvents: 500})
	l := logOf(t, e, "a")
	done := make(chan struct{})
	var group sync.WaitGroup
	for _, p := range []string{"a.>", "a.b"} {
		group.Go(func() {
			after := uint64(0)
			for {
				page, err := l.Read(t.Context(), engine.ReadRequest{Pattern: pattern(t, p), After: after, MaxEvents: 200})
				var gone *engine.PositionGoneError
				switch {
				case errors.As(err, &gone):
					after = gone.Oldest - 1
					continue
				case err != nil || len(page.Damaged) > 0:
					t.Errorf("%v, damaged %v", err, page.Damaged)
					return
				}
				for i, ev := range page.Events {
					if ev.Offset != after+1+uint64(i) {
						t.Errorf("%s: offset %d at place %d after %d", p, ev.Offset, i, after)
						return
					}
				}
				if after = page.Scanned; len(page.Events) == 0 {
					select {
					case <-done:
						return
					default:
					}
				}
			}
		})
	}
	batch := make([]engine.Entry, 100)
	for i := range batch {
		batch[i] = entry(t, "a.b", "", "x")
	}
	for range 300 {
		add(t, l, batch...)
	}
	close(done)
	group.Wait()
}

// New limits hold for logs that are open: what is beyond them goes at once, and ids are remembered as long as they say.
func TestConfigure(t *testing.T) {
	for _, history := range []engine.History{engine.HistoryDisk, engine.HistoryMemory, engine.HistoryNone} {
		t.Run(string(history), func(t *testing.T) {
			var cfg atomic.Pointer[engine.Config]
			cfg.Store(&engine.Config{History: history})
			var now atomic.Int64
			now.Store(1e12)
			o := Options{Dir: "data", FS: vfs.NewMem(), Logger: discard, Now: func() time.Time { return time.UnixMilli(now.Load()) },
				Namespace: func(string) (engine.Config, bool) { return *cfg.Load(), true }}
			e, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			l := logOf(t, e, "a")
			for i := range 100 {
				add(t, l, entry(t, "a.b", fmt.Sprint(i), "x"))
			}
			if r := add(t, l, entry(t, "a.b", "99", "x")); !r[0].Duplicate {
				t.Errorf("%+v", r)
			}
			// The history cannot change while it runs, and is left alone.
			cfg.Store(&engine.Config{History: engine.HistoryOS, MaxEvents: 10, DedupWindow: time.Second})
			e.Configure()
			if history != engine.HistoryNone {
				eventually(t, "trimmed", func() bool { return l.State().Oldest == 91 })
			}
			now.Add(2000)
			e.Configure() // the clock was moved, so the tick has to be asked for
			eventually(t, "forgotten", func() bool {
				r := add(t, l, entry(t, "a.b", "5", "x"))
				return !r[0].Duplicate
			})
			if d := l.State().Durability; d != history.Durability() {
				t.Errorf("durability %v", d)
			}
		})
	}
}
