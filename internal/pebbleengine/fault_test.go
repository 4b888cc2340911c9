package pebbleengine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// faults is a file system whose operations fail when a test says so.
type faults struct {
	vfs.FS
	fail atomic.Pointer[func(errorfs.Op) error]
}

func newFaults(fs vfs.FS) *faults {
	f := &faults{}
	f.FS = errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fail := f.fail.Load(); fail != nil {
			return (*fail)(op)
		}
		return nil
	}))
	return f
}

// set makes operations of the given kinds, on paths with the given suffix, fail; no kinds: none.
func (f *faults) set(suffix string, kinds ...errorfs.OpKind) {
	fail := func(op errorfs.Op) error {
		for _, k := range kinds {
			if op.Kind == k && strings.HasSuffix(op.Path, suffix) {
				return syscall.EIO
			}
		}
		return nil
	}
	f.fail.Store(&fail)
}

func openFaulty(t *testing.T, f *faults, cfg engine.Config) engine.Log {
	t.Helper()
	return logOf(t, open(t, f, "data", cfg), "a")
}

// reopened waits until the log was reopened after a failure.
func reopened(t *testing.T, tail engine.Tail, was string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := tail.Next(ctx)
		var changed *engine.EpochChangedError
		if errors.As(err, &changed) && changed.Epoch != was {
			return
		}
		if err != nil {
			t.Fatalf("tail of a reopened log: %v", err)
		}
	}
}

// A failed write or fsync is never acknowledged, the log stays readable up to its head, and comes back under a new epoch with
// everything that was acknowledged, whichever file failed.
func TestFailures(t *testing.T) {
	cases := map[string]struct {
		suffix string
		kinds  []errorfs.OpKind
	}{
		"fsync": {".log", []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}},
		"write": {".log", []errorfs.OpKind{errorfs.OpFileWrite}},
		"all":   {"", []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpReuseForWrite}},
	}
	for name, c := range cases {
		for _, h := range []engine.History{engine.HistoryDisk, engine.HistoryOS} {
			if name == "fsync" && h == engine.HistoryOS {
				continue // it waits for none
			}
			t.Run(name+"/"+string(h), func(t *testing.T) {
				f := newFaults(vfs.NewMem())
				testFailure(t, f, h, func() { f.set(c.suffix, c.kinds...) })
			})
		}
	}
}

func testFailure(t *testing.T, f *faults, h engine.History, inject func()) {
	l := openFaulty(t, f, window(h))
	add(t, l, entry(t, "a.b", "1", "x"), entry(t, "a.b", "2", "y"))
	before := l.State()
	tail, err := l.Tail(before.Head)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()

	inject()
	for range 3 {
		if res, err := l.Append(t.Context(), []engine.Entry{entry(t, "a.b", "3", "z")}, engine.AppendEach); !errors.Is(err, engine.ErrStorageFailed) {
			t.Fatalf("append to a failing disk: %v, %v", res, err)
		}
	}
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 2 {
		t.Fatalf("%d events can be read, want 2", len(got))
	}
	if s := l.State(); s.Head != 2 {
		t.Fatalf("head is %d after a failed append", s.Head)
	}

	f.set("")
	reopened(t, tail, before.Epoch)
	if s := l.State(); s.Epoch == before.Epoch || s.Head < 2 || s.Head > 3 {
		t.Fatalf("state after reopening: %+v", s)
	}
	if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: 2}); err != nil {
		t.Errorf("an acknowledged position is refused: %v", err)
	}
	// The same id again: stored once, whether or not the failed attempt was.
	for range 2 {
		add(t, l, entry(t, "a.b", "3", "z"))
	}
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 3 || string(got[2].GetPayload()) != "z" {
		t.Errorf("events after reopening: %v", got)
	}
}

// Pebble cannot live with an error while it changes from one WAL to the next: it would take the process with it.
func TestFailureDuringRotation(t *testing.T) {
	t.Run("create", func(t *testing.T) {
		testRotation(t, engine.HistoryDisk, errorfs.OpCreate, errorfs.OpReuseForWrite)
	})
	t.Run("reuse", func(t *testing.T) { // of a log file whose events are in tables
		f := newFaults(vfs.NewMem())
		e := open(t, f, "data", window(engine.HistoryDisk))
		l := logOf(t, e, "a")
		for range 3 {
			add(t, l, entry(t, "a.b", "", "x"))
			<-flush(t, e)
		}
		tail, err := l.Tail(l.State().Head)
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Close()
		was := l.State().Epoch
		f.set(".log", errorfs.OpReuseForWrite)
		flush(t, e)
		<-e.disk.failed()
		f.set("")
		reopened(t, tail, was)
		if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 3 {
			t.Errorf("%d events are left, want 3", len(got))
		}
	})
	t.Run("last sync", func(t *testing.T) { // under history os the only one
		testRotation(t, engine.HistoryOS, errorfs.OpFileSync, errorfs.OpFileSyncData)
	})
}

// flush begins to move what the log file holds into tables, and goes on in another log file.
func flush(t *testing.T, e *Engine) <-chan struct{} {
	t.Helper()
	db, err := e.disk.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer e.disk.release()
	done, err := db.AsyncFlush()
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func testRotation(t *testing.T, h engine.History, kinds ...errorfs.OpKind) {
	f := newFaults(vfs.NewMem())
	l := openFaulty(t, f, window(h))
	add(t, l, entry(t, "a.b", "1", "x"), entry(t, "a.b", "2", "y"))
	before := l.State()
	tail, err := l.Tail(before.Head)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	f.set(".log", kinds...)
	large := entry(t, "a.b", "", strings.Repeat("x", 1<<20))
	for n := 0; ; n++ {
		if _, err := l.Append(t.Context(), []engine.Entry{large}, engine.AppendEach); errors.Is(err, engine.ErrStorageFailed) {
			break
		} else if err != nil || n > 200 {
			t.Fatalf("append %d: %v", n, err)
		}
	}
	head := l.State().Head
	f.set("")
	for { // the tail catches up first
		if _, err = tail.Next(t.Context()); err != nil {
			break
		}
	}
	var changed *engine.EpochChangedError
	if !errors.As(err, &changed) {
		t.Fatal(err)
	}
	if got := l.State().Head; got < head {
		t.Errorf("acknowledged up to %d, only %d are left", head, got)
	}
	add(t, l, entry(t, "a.b", "", "after"))
}

// A manifest that cannot be written stops the store as a log does; nothing that it refers to is deleted meanwhile.
func TestFailingManifest(t *testing.T) {
	f := newFaults(vfs.NewMem())
	e := open(t, f, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	for i := range 10 {
		add(t, l, entry(t, "a.b", string(rune('a'+i)), "x"))
	}
	before := l.State()
	tail, err := l.Tail(before.Head)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	fail := func(op errorfs.Op) error {
		if strings.Contains(op.Path, "MANIFEST") && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpCreate) {
			return syscall.EIO
		}
		return nil
	}
	f.fail.Store(&fail)
	done := flush(t, e)
	<-e.disk.failed()
	<-done
	if _, err := l.Append(t.Context(), []engine.Entry{entry(t, "a.b", "", "")}, engine.AppendEach); !errors.Is(err, engine.ErrStorageFailed) {
		t.Fatalf("append: %v", err)
	}
	if err := e.Health(); !errors.Is(err, engine.ErrStorageFailed) {
		t.Errorf("health: %v", err)
	}
	f.set("")
	reopened(t, tail, before.Epoch)
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 10 {
		t.Errorf("%d events after reopening, want 10", len(got))
	}
	if err := e.Health(); err != nil {
		t.Errorf("health after reopening: %v", err)
	}
}

// While the directory can only be read, it is read.
func TestReadsWhileReopeningFails(t *testing.T) {
	f := newFaults(vfs.NewMem())
	e := open(t, f, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "x"), entry(t, "a.c", "", "y"))
	f.set("", errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate)
	if _, err := l.Append(t.Context(), []engine.Entry{entry(t, "a.b", "", "")}, engine.AppendEach); !errors.Is(err, engine.ErrStorageFailed) {
		t.Fatalf("append: %v", err)
	}
	if err := e.disk.reopen(nil, nil); err == nil {
		t.Fatal("a directory that cannot be written was opened for writing")
	}
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) != 2 {
		t.Errorf("%d events, want 2", len(got))
	}
	if _, err := e.Log("new"); !errors.Is(err, engine.ErrStorageFailed) {
		t.Errorf("a new namespace on a failed disk: %v", err)
	}
}

// Log, Append and Read meet a store that is being reopened all the time.
func TestReopenRaces(t *testing.T) {
	f := newFaults(vfs.NewMem())
	e, err := Open(Options{Dir: "data", FS: f, Namespace: namespaces(window(engine.HistoryDisk)), Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	acked := make(chan uint64, 1)
	ctx, stop := context.WithCancel(t.Context())
	l := logOf(t, e, "a")
	var group sync.WaitGroup
	group.Go(func() {
		last := uint64(0)
		for i := 0; ctx.Err() == nil; i++ {
			res, err := l.Append(ctx, []engine.Entry{entry(t, "a.b", "", "x")}, engine.AppendEach)
			if err == nil {
				last = res[0].Offset
			}
			if i%10 == 0 {
				if _, err := e.Log("n" + string(rune('a'+i/10%26))); err != nil && !errors.Is(err, engine.ErrStorageFailed) {
					t.Error(err)
				}
			}
			if _, err := l.Read(ctx, engine.ReadRequest{Pattern: topic.Pattern{}}); err != nil && ctx.Err() == nil && !errors.Is(err, engine.ErrStorageFailed) {
				t.Error(err)
			}
		}
		acked <- last
	})
	for range 5 {
		s := l.State()
		tail, err := l.Tail(s.Head)
		if err != nil {
			t.Fatal(err)
		}
		f.set(".log", errorfs.OpFileSync, errorfs.OpFileSyncData)
		<-e.disk.failed()
		f.set("")
		reopened(t, tail, s.Epoch)
		tail.Close()
	}
	stop()
	group.Wait()
	if last := <-acked; l.State().Head < last {
		t.Errorf("acknowledged up to %d, head is %d", last, l.State().Head)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
