package pebbleengine

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// space keeps Pebble from ever meeting a full disk: appends are refused below a reserve, which leaves room for flushes of
// what was accepted, and a ballast file is given up if something else fills the disk all the same. Sizes follow the file system:
// a 64 MiB tmpfs gets a table of 4 MiB, a large disk one of 64 MiB.
type space struct {
	fs      vfs.FS
	dir     string
	table   uint64 // size of a memtable
	reserve uint64 // free bytes below which appends are refused
	ballast uint64

	mu      sync.Mutex
	checked time.Time
	written uint64 // since checked
	free    uint64
}

// spaceAge is how old a reading of the free space may be.
const spaceAge = 100 * time.Millisecond

func newSpace(fs vfs.FS, dir string) *space {
	s := &space{fs: fs, dir: dir, table: 64 << 20}
	if u, err := fs.GetDiskUsage(dir); err == nil && u.TotalBytes > 0 {
		s.table = min(max(u.TotalBytes/64, 4<<20), 64<<20)
	}
	s.reserve = 3 * s.table
	s.ballast = s.table / 4
	return s
}

// check is ErrStorageFull if appends must be refused.
func (s *space) check() error { return s.take(0) }

// take is check before n bytes are written.
func (s *space) take(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.checked) > spaceAge {
		u, err := s.fs.GetDiskUsage(s.dir)
		if errors.Is(err, vfs.ErrUnsupported) { // in-memory file systems
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: cannot read the free space: %w", engine.ErrStorageFull, err)
		}
		s.free, s.checked, s.written = u.AvailBytes, now, 0
	}
	s.written += n
	if s.free < s.reserve+s.written {
		return fmt.Errorf("%w: %d MiB are free and %d MiB are kept in reserve", engine.ErrStorageFull, s.free>>20, s.reserve>>20)
	}
	return nil
}

func (s *space) ballastPath() string { return s.fs.PathJoin(s.dir, "ballast") }

// dropBallast runs inside Pebble when a write met a full disk; the write is then tried once more.
func (s *space) dropBallast() {
	s.fs.Remove(s.ballastPath()) // already gone: nothing more can be done here
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked = time.Time{}
}

// keepBallast writes the ballast if it is missing and there is room for it.
func (s *space) keepBallast(logger *slog.Logger) {
	if _, err := s.fs.Stat(s.ballastPath()); err == nil {
		return
	}
	if u, err := s.fs.GetDiskUsage(s.dir); err != nil || u.AvailBytes < s.reserve+2*s.ballast {
		return
	}
	if err := s.writeBallast(); err != nil {
		logger.Warn("cannot write the ballast file", "err", err)
		s.fs.Remove(s.ballastPath()) // half a ballast is none
	}
}

func (s *space) writeBallast() error {
	f, err := s.fs.Create(s.ballastPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for left := s.ballast; left > 0; {
		n, err := f.Write(chunk[:min(left, uint64(len(chunk)))])
		if err != nil {
			return errors.Join(err, f.Close())
		}
		left -= uint64(n)
	}
	return errors.Join(f.Sync(), f.Close())
}

// watchSpace writes the ballast anew when space has returned.
func (e *Engine) watchSpace() {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
			e.space.keepBallast(e.o.Logger)
		}
	}
}

// isLocked tells a directory that another process holds from one that cannot be used: fcntl answers EAGAIN.
func isLocked(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || err.Error() == "lock held by current process"
}
