package pebbleengine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// The machine fails at any operation of a deletion: what is found after that is the namespace as it was, or nothing, and once the deletion
// was done it is nothing.
func TestCrashInDelete(t *testing.T) {
	for _, h := range []engine.History{engine.HistoryDisk, engine.HistoryOS} {
		t.Run(string(h), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(len(h))))
			found := map[int]int{}
			for n := 0; ; n++ {
				events, complete := crashInDelete(t, h, n, rng)
				found[events]++
				if complete {
					break
				}
			}
			if len(found) != 2 || found[0] == 0 || found[deletedEvents] == 0 {
				t.Errorf("events found after a crash, and how often: %v", found)
			}
		})
	}
}

const deletedEvents = 50

// crashInDelete takes power away before the n-th operation of a deletion on the file system, or behind the last: complete. It returns how
// many events are found.
func crashInDelete(t *testing.T, h engine.History, n int, rng *rand.Rand) (events int, complete bool) {
	unsynced := 100
	if h == engine.HistoryDisk {
		unsynced = rng.IntN(101)
	}
	mem := vfs.NewCrashableMem()
	f := newFaults(mem)
	e := open(t, f, "data", window(h))
	l := logOf(t, e, "a")
	for i := range deletedEvents {
		add(t, l, entry(t, fmt.Sprint("a.b", i%7), fmt.Sprint(i), "x"))
	}
	add(t, logOf(t, e, "b"), entry(t, "b.b", "1", "x"))
	before := l.State()

	var mu sync.Mutex
	var left *vfs.MemFS
	crash := func() {
		mu.Lock()
		defer mu.Unlock()
		if left == nil {
			left = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})
		}
	}
	var ops int
	count := func(errorfs.Op) error {
		mu.Lock()
		ops++
		now := ops == n+1
		mu.Unlock()
		if now {
			crash()
		}
		return nil
	}
	f.fail.Store(&count)
	if err := e.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	f.fail.Store(nil)
	mu.Lock()
	complete = left == nil
	mu.Unlock()
	crash()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = open(t, left, "data", window(h))
	l = logOf(t, e, "a")
	got := readAll(t, l, pattern(t, "a.>"), 0, 0)
	topics, _, err := l.Topics(t.Context(), pattern(t, "a.>"), "", 100)
	if err != nil || len(got) == 0 && (len(topics) > 0 || l.State().Head > 0) || len(got) > 0 && len(topics) != 7 {
		t.Errorf("%d events, %d topics, %+v: %v", len(got), len(topics), l.State(), err)
	}
	var changed *engine.EpochChangedError
	if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: 1}); errors.As(err, &changed) != (len(got) == 0) {
		t.Errorf("%d events, and a position before the crash: %v", len(got), err)
	}
	if res := add(t, l, entry(t, "a.b0", "0", "x"))[0]; res.Duplicate != (len(got) > 0) {
		t.Errorf("%d events, and the first of them again: %+v", len(got), res)
	}
	if complete && len(got) > 0 {
		t.Error("a deletion that was done did not outlive the crash")
	}
	if other := readAll(t, logOf(t, e, "b"), pattern(t, "b.>"), 0, 0); len(other) != 1 {
		t.Errorf("%d events of another namespace", len(other))
	}
	return len(got), complete
}

// What a namespace took is given back soon, though nothing else is written.
func TestDeleteGivesSpaceBack(t *testing.T) {
	e := open(t, smallRoom{vfs.NewMem()}, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	payload := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{})
	for range 160 {
		rng.Read(payload) // never fails
		add(t, l, entry(t, "a.b", "", string(payload)))
	}
	// What a compaction works on at that moment would go with a later one.
	await(t, "quiet", func() bool {
		m := e.disk.db.Metrics()
		return m.Compact.NumInProgress == 0 && m.MemTable.Count == 1
	})
	before := e.Figures()
	if n := e.Namespaces(); len(n) != 1 || n[0].Bytes < 10<<20 || before.Namespaces != 1 {
		t.Fatalf("%+v, %+v", n, before)
	}
	if err := e.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if n := e.Namespaces(); len(n) != 0 || e.Figures().Namespaces != 0 {
		t.Errorf("deleted, and listed: %+v", n)
	}
	// Log files stay, to be used again.
	await(t, "space", func() bool { return e.Figures().DiskBytes <= before.DiskBytes/2 })
}

// await waits for what nothing announces.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it never came", what)
		}
	}
}

func TestDeleteMakesRoom(t *testing.T) {
	e, err := Open(Options{Dir: "data", FS: vfs.NewMem(), Namespace: namespaces(window(engine.HistoryDisk)), Logger: discard, MaxNamespaces: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, name := range []string{"a", "b", "a", "c"} {
		add(t, logOf(t, e, name), entry(t, name+".x", "", "x"))
		if _, err := e.Log("other"); !errors.Is(err, engine.ErrTooManyNamespaces) {
			t.Errorf("beside %s: %v", name, err)
		}
		if err := e.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if keys := remaining(t, e); keys > 0 {
		t.Errorf("%d keys are left", keys)
	}
}

// remaining counts the keys in the disk's store.
func remaining(t *testing.T, e *Engine) (n int) {
	t.Helper()
	db, err := e.disk.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer e.disk.release()
	if err := scan(db, nil, nil, func(_, _ []byte) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// A namespace that was kept on disk, and now is in memory, or kept nowhere, is deleted in both places.
func TestDeleteWhatWasKeptElsewhere(t *testing.T) {
	for _, h := range []engine.History{engine.HistoryMemory, engine.HistoryNone} {
		fs := vfs.NewMem()
		e := open(t, fs, "data", window(engine.HistoryDisk))
		add(t, logOf(t, e, "a"), entry(t, "a.b", "1", "x"))
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, fs, "data", window(h))
		l := logOf(t, e, "a")
		add(t, l, entry(t, "a.b", "1", "x"))
		if err := e.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := l.Check(engine.Position{}); !errors.Is(err, engine.ErrDeleted) {
			t.Errorf("%s: %v", h, err)
		}
		if keys := remaining(t, e); keys > 0 {
			t.Errorf("%s: %d keys are left on disk", h, keys)
		}
		if err := e.Delete(t.Context(), "a"); !errors.Is(err, engine.ErrUnknownNamespace) {
			t.Errorf("%s: deleted again: %v", h, err)
		}
	}
}

// Pebble shows what it could not make durable. Until the store is open again nobody reads a log that may be half there.
func TestFailedDeleteIsNotRead(t *testing.T) {
	f := newFaults(vfs.NewMem())
	e := open(t, f, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	for i := range 10 {
		add(t, l, entry(t, "a.b", fmt.Sprint(i), "x"))
	}
	before := l.State()
	tail, err := l.Tail(before.Head)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	f.set(".log", errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate)
	for range 2 {
		if err := e.Delete(t.Context(), "a"); !errors.Is(err, engine.ErrStorageFailed) {
			t.Fatalf("delete: %v", err)
		}
	}
	for range 3 {
		if page, err := l.Read(t.Context(), engine.ReadRequest{}); !errors.Is(err, engine.ErrStorageFailed) {
			t.Errorf("read: %+v, %v", page, err)
		}
		if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: 3}); !errors.Is(err, engine.ErrStorageFailed) {
			t.Errorf("check: %v", err)
		}
	}
	f.set("")
	reopened(t, tail, before.Epoch)
	err = l.Check(engine.Position{Epoch: before.Epoch, Offset: 3})
	var changed *engine.EpochChangedError
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 10 && len(got) != 0 || errors.As(err, &changed) != (len(got) == 0) {
		t.Errorf("%d events after reopening, and a position of before: %v", len(got), err)
	}
	add(t, l, entry(t, "a.b", "new", "x"))
}

// Namespaces are deleted, used and looked at while the store fails and is reopened, until all is closed in the middle of it.
func TestDeleteRaces(t *testing.T) {
	f := newFaults(vfs.NewMem())
	e := open(t, f, "data", window(engine.HistoryDisk))
	allowed := func(err error) bool {
		for _, is := range []error{nil, engine.ErrDeleted, engine.ErrStorageFailed, engine.ErrUnknownNamespace, context.Canceled} {
			if errors.Is(err, is) {
				return true
			}
		}
		return false
	}
	var group sync.WaitGroup
	deleted := make(chan struct{})
	for worker := range 6 {
		group.Go(func() {
			name := string(rune('a' + worker%2))
			for i := 0; ; i++ {
				ctx, cancel := context.WithCancel(t.Context())
				if i%5 == 0 {
					cancel()
				}
				err := use(ctx, t, e, name, worker, i)
				cancel()
				if errors.Is(err, engine.ErrClosed) {
					return
				}
				if !allowed(err) {
					t.Errorf("worker %d: %v", worker, err)
				}
				if worker < 2 && err == nil {
					select {
					case deleted <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for range 5 {
		for range 4 {
			<-deleted
		}
		// Deletions change the log file, and the one that is used again is not watched: there it is the change that fails.
		f.set("", errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpReuseForWrite)
		<-e.disk.failed()
		f.set("")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	group.Wait()
}

// use is what a worker does with a namespace.
func use(ctx context.Context, t *testing.T, e *Engine, name string, worker, i int) error {
	if worker < 2 {
		return e.Delete(ctx, name)
	}
	l, err := e.Log(name)
	if err != nil {
		return err
	}
	if worker < 4 {
		_, err = l.Append(ctx, []engine.Entry{entry(t, name+".x", "", "x")}, engine.AppendEach)
		return err
	}
	if i%2 == 0 {
		if _, err := l.Trim(ctx, 3); err != nil {
			return err
		}
		e.Namespaces()
	}
	_, err = l.Read(ctx, engine.ReadRequest{After: l.State().Oldest - 1})
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		return nil
	}
	return err
}
