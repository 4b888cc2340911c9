package pebbleengine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// space keeps Pebble from ever meeting a full disk: appends are refused below a reserve, which leaves room for flushes and
// compactions of what was accepted, and a ballast file is given up if something else fills the disk all the same. Sizes follow
// the file system: on 64 MiB a memtable takes 1 MiB and the reserve 16; from 4 GiB on it is 64 and 256.
type space struct {
	// Fixed after newSpace.
	fs      vfs.FS
	dir     string
	logger  *slog.Logger
	table   uint64 // bytes of a memtable
	reserve uint64 // free bytes below which appends are refused
	ballast uint64

	mu      sync.Mutex
	checked time.Time // when free was read
	free    uint64
	written uint64 // since checked
}

const (
	// spaceAge is how old a reading of the free space may be.
	spaceAge = 100 * time.Millisecond
	// ballastEvery is how often it is checked that the ballast is there.
	ballastEvery = 5 * time.Second
)

func newSpace(fs vfs.FS, dir string, logger *slog.Logger) *space {
	s := &space{fs: fs, dir: dir, logger: logger, table: 64 << 20, reserve: 256 << 20}
	if u, err := fs.GetDiskUsage(dir); err == nil && u.TotalBytes > 0 {
		s.table = min(max(u.TotalBytes/64, 1<<20), s.table)
		s.reserve = min(max(u.TotalBytes/4, 3*s.table), s.reserve)
	}
	s.ballast = s.reserve / 8
	return s
}

// take accounts for n bytes that are about to be written; ErrStorageFull if there is no room for them.
func (s *space) take(n uint64) error {
	if !s.fresh() {
		u, err := s.fs.GetDiskUsage(s.dir)
		if errors.Is(err, vfs.ErrUnsupported) { // in-memory file systems
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: cannot read the free space of %q: %w", engine.ErrStorageFull, s.dir, err)
		}
		s.read(u.AvailBytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free < s.reserve+s.written+n {
		return fmt.Errorf("%w: %d MiB are free and %d MiB are kept in reserve; free some space or shorten retention",
			engine.ErrStorageFull, s.free>>20, s.reserve>>20)
	}
	s.written += n
	return nil
}

func (s *space) fresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.checked) < spaceAge
}

func (s *space) read(free uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free, s.checked, s.written = free, time.Now(), 0
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
func (s *space) keepBallast() {
	if _, err := s.fs.Stat(s.ballastPath()); err == nil {
		return
	}
	if u, err := s.fs.GetDiskUsage(s.dir); err != nil || u.AvailBytes < s.reserve+2*s.ballast {
		return
	}
	if err := s.writeBallast(); err != nil {
		s.logger.Warn("cannot write the ballast file", "err", err)
		s.fs.Remove(s.ballastPath()) // half a ballast is none
	}
}

func (s *space) writeBallast() error {
	f, err := s.fs.Create(s.ballastPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if err := f.Preallocate(0, int64(s.ballast)); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// watch writes the ballast anew when space has returned, until ctx ends.
func (s *space) watch(ctx context.Context) {
	tick := time.NewTimer(jitter(ballastEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.keepBallast()
			tick.Reset(jitter(ballastEvery))
		}
	}
}
