package pebbleengine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// smallDisk is a file system that says how full it is, and fails writes when it is full to the brim.
type smallDisk struct {
	*faults
	total, free atomic.Uint64
	onWrite     func() error // may make a write or sync fail
}

func newSmallDisk(fs vfs.FS, total uint64) *smallDisk {
	d := &smallDisk{faults: newFaults(fs), onWrite: func() error { return nil }}
	d.total.Store(total)
	d.free.Store(total)
	fail := func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpCreate:
			if d.free.Load() == 0 {
				return syscall.ENOSPC
			}
			return d.onWrite()
		case errorfs.OpFileSync, errorfs.OpFileSyncData:
			return d.onWrite()
		}
		return nil
	}
	d.fail.Store(&fail)
	return d
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{TotalBytes: d.total.Load(), AvailBytes: d.free.Load()}, nil
}

func TestSizesFollowTheDisk(t *testing.T) {
	for _, c := range []struct{ total, table, reserve uint64 }{
		{64 << 20, 1 << 20, 16 << 20}, {1 << 30, 16 << 20, 256 << 20}, {1 << 40, 64 << 20, 256 << 20}, {4 << 20, 1 << 20, 3 << 20},
	} {
		s := newSpace(newSmallDisk(vfs.NewMem(), c.total), "data", discard)
		if s.table != c.table || s.reserve != c.reserve {
			t.Errorf("of %d MiB: table %d, reserve %d; want %d, %d", c.total>>20, s.table, s.reserve, c.table, c.reserve)
		}
	}
}

// retry appends until it works, and returns the last error before that.
func retry(t *testing.T, l engine.Log) (last error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := l.Append(ctx, []engine.Entry{entry(t, "a.b", "", "again")}, engine.AppendEach)
		if err == nil {
			return last
		}
		last = err
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("appends do not work again 10 s after space returned: %v", last)
		}
	}
}

// refused appends until it is refused for want of space.
func refused(t *testing.T, l engine.Log, size int) {
	t.Helper()
	payload := string(make([]byte, size))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := l.Append(ctx, []engine.Entry{entry(t, "a.b", "", payload)}, engine.AppendEach)
		if errors.Is(err, engine.ErrStorageFull) {
			return
		}
		if err != nil && !errors.Is(err, engine.ErrStorageFailed) {
			t.Fatal(err)
		}
	}
}

func TestReserve(t *testing.T) {
	d := newSmallDisk(vfs.NewMem(), 64<<20)
	e := open(t, d, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "x"))
	d.free.Store(15 << 20)
	refused(t, l, 0)
	if err := e.Health(); !errors.Is(err, engine.ErrStorageFull) {
		t.Errorf("health: %v", err)
	}
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); len(got) < 1 {
		t.Error("a full disk cannot be read")
	}
	if err := e.disk.failure(); err != nil {
		t.Errorf("a refusal is no failure: %v", err)
	}
	d.free.Store(64 << 20)
	if last := retry(t, l); last != nil && !errors.Is(last, engine.ErrStorageFull) {
		t.Errorf("while full: %v", last)
	}
}

// What is accepted counts against the free space also before the file system says so.
func TestReserveCountsWhatIsWritten(t *testing.T) {
	s := newSpace(newSmallDisk(vfs.NewMem(), 64<<20), "data", discard)
	if err := s.take(48 << 20); err != nil {
		t.Fatal(err)
	}
	s.read(64 << 20)
	if err := s.take(40 << 20); err != nil {
		t.Fatal(err)
	}
	if err := s.take(40 << 20); !errors.Is(err, engine.ErrStorageFull) {
		t.Errorf("88 MiB fit on 64: %v", err)
	}
	if err := s.take(1 << 20); err != nil {
		t.Errorf("what was refused counts: %v", err)
	}
}

// Something else fills the disk to the last byte between two looks at it: nothing is acknowledged that is not stored, and
// everything works again when there is space.
func TestBrimFull(t *testing.T) {
	d := newSmallDisk(vfs.NewMem(), 64<<20)
	e := open(t, d, "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "x"))
	if _, err := d.Stat(e.space.ballastPath()); err != nil {
		t.Fatalf("no ballast: %v", err)
	}
	e.space.read(64 << 20) // the last look
	d.free.Store(0)
	refused(t, l, 0)
	if _, err := d.Stat(e.space.ballastPath()); err == nil {
		t.Error("the ballast was not given up")
	}
	acked := l.State().Head
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); uint64(len(got)) != acked {
		t.Errorf("%d of %d events can be read", len(got), acked)
	}
	d.free.Store(64 << 20)
	retry(t, l)
	e.space.keepBallast()
	if _, err := d.Stat(e.space.ballastPath()); err != nil {
		t.Errorf("the ballast is not back: %v", err)
	}
}

// The same on a real file system of 64 MiB, which a child process mounts for itself alone.
func TestRealSmallDisk(t *testing.T) {
	const child = "RUNNEL_TEST_TMPFS"
	if dir := os.Getenv(child); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
			t.Fatal(err)
		}
		testRealSmallDisk(t, dir)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRealSmallDisk$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		t.Logf("this machine lets nobody mount: %v; the tests above stand in", err)
		return
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func testRealSmallDisk(t *testing.T, dir string) {
	filler, more := filepath.Join(dir, "filler"), filepath.Join(dir, "more")
	if err := os.WriteFile(filler, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	e := open(t, nil, data, window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	refused(t, l, 10_000)
	head := l.State().Head
	if head < 1000 { // of 10 KB, on 48 MiB of which 16 are kept
		t.Errorf("full after %d events", head)
	}
	t.Logf("full after %d events of 10 kB", head)
	fillToTheBrim(t, more)
	refused(t, l, 0)
	head = l.State().Head // a few were accepted before the engine noticed
	if got := readAll(t, l, pattern(t, "a.>"), 0, 0); uint64(len(got)) != head {
		t.Errorf("%d of %d events can be read", len(got), head)
	}
	for _, name := range []string{filler, more} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	retry(t, l)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if got := readAll(t, logOf(t, open(t, nil, data, window(engine.HistoryDisk)), "a"), pattern(t, "a.>"), 0, 0); uint64(len(got)) != head+1 {
		t.Errorf("%d events after a restart, want %d", len(got), head+1)
	}
}

func fillToTheBrim(t *testing.T, path string) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
