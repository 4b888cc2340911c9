package pebbleengine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// refusal opens a directory that cannot be opened, and returns the one line that says why.
func refusal(t *testing.T, fs vfs.FS, dir string) string {
	t.Helper()
	e, err := Open(Options{Dir: dir, FS: fs, Namespace: namespaces(engine.Config{}), Logger: discard})
	if err == nil {
		e.Close()
		t.Fatalf("%q was opened", dir)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	return err.Error()
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	e := open(t, nil, dir, window(engine.HistoryDisk))
	want := fmt.Sprintf("data directory %q is in use by another Runnel process; stop it or choose another directory with --data", dir)
	if got := refusal(t, nil, dir); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, nil, dir, window(engine.HistoryDisk)) // free again
}

// Another process holds the lock: fcntl answers EAGAIN.
func TestDirectoryLockedByAnotherProcess(t *testing.T) {
	f := newFaults(vfs.NewMem())
	fail := func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLock {
			return syscall.EAGAIN
		}
		return nil
	}
	f.fail.Store(&fail)
	if got := refusal(t, f, "data"); !strings.Contains(got, "in use by another Runnel process") {
		t.Error(got)
	}
}

func TestDirectoryIsCreated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	open(t, nil, dir, window(engine.HistoryDisk))
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestForeignDirectories(t *testing.T) {
	write := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		prepare func(*testing.T, string)
		want    string
	}{
		"somebody else's": {write("letter.txt", "dear"), `holds "letter.txt" and is not a Runnel data directory`},
		"newer format":    {write(markerName, "runnel data directory, format 2\n"), "use the version that wrote it"},
		"a file": {func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, "is a file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(t, dir)
			if got := refusal(t, nil, dir); !strings.Contains(got, c.want) {
				t.Errorf("%q does not say %q", got, c.want)
			}
		})
	}
}

func TestUnreadableDirectory(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpList, errorfs.OpMkdirAll, errorfs.OpLock, errorfs.OpCreate} {
		f := newFaults(vfs.NewMem())
		if err := f.MkdirAll("data", 0o700); err != nil {
			t.Fatal(err)
		}
		fail := func(op errorfs.Op) error {
			if op.Kind == kind {
				return os.ErrPermission
			}
			return nil
		}
		f.fail.Store(&fail)
		if got := refusal(t, f, "data"); !strings.Contains(got, "permission") || !strings.Contains(got, "--data") {
			t.Errorf("operation %v: %q", kind, got)
		}
	}
}

// A start that was cut short at any operation can be repeated.
func TestInterruptedFirstStart(t *testing.T) {
	for n := 0; ; n++ {
		f := newFaults(vfs.NewMem())
		left := n
		fail := func(errorfs.Op) error {
			if left--; left < 0 {
				return syscall.EIO
			}
			return nil
		}
		f.fail.Store(&fail)
		e, err := Open(Options{Dir: "data", FS: f, Namespace: namespaces(window(engine.HistoryDisk)), Logger: discard})
		if err == nil {
			f.fail.Store(nil)
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		f.fail.Store(nil)
		open(t, f, "data", window(engine.HistoryDisk))
	}
}

// An older copy of the directory is put back: positions of what came after it was made are refused.
func TestRestoredCopy(t *testing.T) {
	dir, backup := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	cfg := window(engine.HistoryDisk)
	e := open(t, nil, dir, cfg)
	l := logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "1"), entry(t, "a.b", "", "2"))
	first := l.State().Epoch
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	e = open(t, nil, dir, cfg)
	l = logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "3"), entry(t, "a.b", "", "4"))
	second := l.State().Epoch
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	l = logOf(t, open(t, nil, backup, cfg), "a")
	add(t, l, entry(t, "a.b", "", "other 3"), entry(t, "a.b", "", "other 4"), entry(t, "a.b", "", "other 5"))
	for _, c := range []struct {
		p     engine.Position
		valid bool
	}{
		{engine.Position{Epoch: first, Offset: 2}, true}, {engine.Position{Epoch: first, Offset: 3}, false},
		{engine.Position{Epoch: second, Offset: 2}, false}, {engine.Position{Epoch: second, Offset: 4}, false},
		{engine.Position{Epoch: l.State().Epoch, Offset: 5}, true},
	} {
		var changed *engine.EpochChangedError
		if err := l.Check(c.p); (err == nil) != c.valid || err != nil && !errors.As(err, &changed) {
			t.Errorf("%+v: %v, want valid %v", c.p, err, c.valid)
		}
	}
}

func TestEpochListIsBounded(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, fs, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	e.mu.Lock()
	inner := e.logs[0]
	e.mu.Unlock()
	first := l.State().Epoch
	for range maxEpochs {
		db, err := e.disk.acquire()
		if err != nil {
			t.Fatal(err)
		}
		err = inner.load(db)
		e.disk.release()
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(inner.epochs) != maxEpochs {
		t.Errorf("%d epochs", len(inner.epochs))
	}
	var changed *engine.EpochChangedError
	if err := l.Check(engine.Position{Epoch: first}); !errors.As(err, &changed) {
		t.Errorf("the oldest epoch of all: %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	e, err := Open(Options{Dir: "data", FS: vfs.NewMem(), Namespace: namespaces(window(engine.HistoryDisk)), Logger: discard, MaxNamespaces: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if _, err := e.Log("a"); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
	for _, c := range []struct {
		name string
		want error
	}{
		{"unknown", engine.ErrUnknownNamespace}, {"a.b", engine.ErrUnknownNamespace}, {"", engine.ErrUnknownNamespace}, {">", engine.ErrUnknownNamespace},
		{"a", nil}, {"b", nil}, {"a", nil}, {"c", engine.ErrTooManyNamespaces}, {"b", nil},
	} {
		if _, err := e.Log(c.name); !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.name, err, c.want)
		}
	}
}
