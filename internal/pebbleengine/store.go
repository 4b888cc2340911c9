package pebbleengine

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// store is one Pebble database and the latch that closes it to writers.
//
// Pebble answers a failed commit by Logger.Fatalf and, where that returns, reports success. So Fatalf latches the store, as
// does the guard under it, and nothing that was applied counts before the latch was looked at again. A latched store is
// replaced by reopen.
type store struct {
	// Fixed.
	dir    string
	fs     vfs.FS
	memory bool
	cache  *pebble.Cache
	table  uint64 // bytes of a memtable
	logger *slog.Logger
	broken chan struct{} // receives once per latching

	// mu is held for reading by whoever uses db, also through I/O: it guards nothing but the exchange of db.
	mu    sync.RWMutex
	db    *pebble.DB // nil while it cannot be opened
	guard *guard

	latch latch
	names numbers

	complained atomic.Int64 // when a background error was last logged, in nanoseconds
}

const (
	// complainEvery is how often errors are logged that come again and again.
	complainEvery = 10 * time.Second
	// memtables is how many there may be, those that wait for their flush included, before writes wait.
	memtables = 4
	// flushTimeout bounds the flush of a database that is closed.
	flushTimeout = 10 * time.Second
)

// latch says whether a store takes writes.
type latch struct {
	mu     sync.Mutex
	err    error
	closed chan struct{} // closed while latched
}

// level is what a commit waits for.
type level int

const (
	buffered level = iota // nothing
	written               // the operating system has it
	durable               // it was synced
)

func levelOf(h engine.History) level {
	switch h {
	case engine.HistoryDisk:
		return durable
	case engine.HistoryOS:
		return written
	default:
		return buffered
	}
}

func newStore(dir string, fs vfs.FS, table uint64, cache int64, memory bool, logger *slog.Logger) *store {
	return &store{
		dir: dir, fs: fs, table: table, memory: memory, logger: logger,
		cache: pebble.NewCache(cache), broken: make(chan struct{}, 1), latch: latch{closed: make(chan struct{})},
	}
}

// open opens the database. The caller holds mu, or nobody else knows the store.
func (s *store) open(readOnly bool) error {
	g := &guard{FS: s.fs, failed: s.fail}
	db, err := openPebble(s.dir, s.options(g, readOnly))
	if err != nil {
		return err
	}
	s.db, s.guard = db, g
	g.serving.Store(true)
	return nil
}

// openPebble turns into errors what pebble.Open answers some failing syncs with: it cleans up, and panics.
func openPebble(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("pebble: %v", r)
		}
	}()
	return pebble.Open(dir, o)
}

func (s *store) options(g *guard, readOnly bool) *pebble.Options {
	o := &pebble.Options{
		FS:                          g,
		ReadOnly:                    readOnly,
		Cache:                       s.cache,
		Logger:                      pebbleLogger{s},
		DisableWAL:                  s.memory,
		MemTableSize:                s.table,
		MemTableStopWritesThreshold: memtables,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               int64(s.table),
		BytesPerSync:                512 << 10,
		WALBytesPerSync:             512 << 10,
		// Later formats write into the WAL how far it was synced, and take what is missing below for damage. Under history
		// "os" not every sync is a real one, so after a power loss that would be a false alarm.
		FormatMajorVersion: pebble.FormatColumnarBlocks,
		EventListener: &pebble.EventListener{
			BackgroundError: s.backgroundError,
			DataCorruption:  func(i pebble.DataCorruptionInfo) { s.logger.Error("storage is damaged", "info", i.String()) },
			DiskSlow:        func(i pebble.DiskSlowInfo) { s.logger.Warn("disk is slow", "info", i.String()) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) { s.logger.Warn("writes stall", "reason", i.Reason) },
		},
	}
	// The usual scheduler has a goroutine that outlives a pebble.Open that fails, and there may be many of those. Compactions
	// get their turn without it: whenever a flush or another compaction ends.
	o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	for i := range o.TargetFileSizes {
		// Small disks need small tables: a compaction needs room for its output beside its input.
		o.TargetFileSizes[i] = max(256<<10, min(2<<20, int64(s.table)/4)) << min(i, 3)
	}
	return o
}

// backgroundError is told when a flush or compaction failed. A full disk is waited for; anything else means that the disk is not
// to be trusted, and that sooner or later writers would hang behind it.
func (s *store) backgroundError(err error) {
	if !errors.Is(err, syscall.ENOSPC) && !pebble.IsCorruptionError(err) {
		s.fail(err)
		return
	}
	now := time.Now().UnixNano()
	if last := s.complained.Load(); now-last > int64(complainEvery) && s.complained.CompareAndSwap(last, now) {
		s.logger.Error("storage cannot be tidied up, trying again", "err", err)
	}
}

// failure is why the store takes no writes; nil if it does.
func (s *store) failure() error {
	s.latch.mu.Lock()
	defer s.latch.mu.Unlock()
	return s.latch.err
}

// failed is closed while the store is latched.
func (s *store) failed() <-chan struct{} {
	s.latch.mu.Lock()
	defer s.latch.mu.Unlock()
	return s.latch.closed
}

func (s *store) fail(err error) {
	err = fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	if !s.setLatch(err) {
		return
	}
	s.logger.Error("writes are refused until the storage is open again", "err", err)
	select {
	case s.broken <- struct{}{}:
	default:
	}
}

// setLatch reports whether the latch was open.
func (s *store) setLatch(err error) bool {
	s.latch.mu.Lock()
	defer s.latch.mu.Unlock()
	if s.latch.err != nil {
		return false
	}
	s.latch.err = err
	close(s.latch.closed)
	return true
}

func (s *store) unlatch() {
	s.latch.mu.Lock()
	defer s.latch.mu.Unlock()
	if s.latch.err != nil {
		s.latch.err, s.latch.closed = nil, make(chan struct{})
	}
}

// acquire gives access to the database until release.
func (s *store) acquire() (*pebble.DB, error) {
	s.mu.RLock()
	if s.db == nil {
		s.mu.RUnlock()
		if err := s.failure(); err != nil {
			return nil, err
		}
		return nil, engine.ErrClosed
	}
	return s.db, nil
}

func (s *store) release() { s.mu.RUnlock() }

// apply commits b. The caller has acquired the store. After an error b may or may not be there when the store is open again.
func (s *store) apply(b *pebble.Batch, l level) error {
	if s.memory {
		l = buffered
	}
	if err := s.failure(); err != nil {
		return err
	}
	o := pebble.Sync
	switch l {
	case buffered:
		o = pebble.NoSync
	case durable:
		s.guard.durable.Add(1)
		defer s.guard.durable.Add(-1)
	}
	if err := s.db.Apply(b, o); err != nil {
		s.fail(err)
	}
	return s.failure()
}

// reopen replaces a latched database by a fresh one from the same directory and runs load, before anybody else can use it.
// If the directory cannot be written, it is at least opened for reading.
func (s *store) reopen(writable error, load func(*pebble.DB) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.closeDB(); err != nil {
		s.logger.Warn("closing the failed storage", "err", err)
	}
	err := writable
	if err == nil {
		err = s.probe()
	}
	if err == nil {
		err = s.open(false)
	}
	if err != nil {
		if err := s.open(true); err != nil {
			s.logger.Error("storage cannot be read", "err", err)
		}
		return err
	}
	s.unlatch()
	if err := load(s.db); err != nil {
		s.setLatch(fmt.Errorf("%w: %w", engine.ErrStorageFailed, err))
		return err
	}
	return s.failure()
}

// probe finds out whether the directory can be written: pebble.Open takes that for granted, and retries without end.
func (s *store) probe() error {
	path := s.fs.PathJoin(s.dir, "probe")
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close(), s.fs.Remove(path), syncDirectory(s.fs, s.dir))
}

// closeDB closes the database, if it is open. The caller holds mu, or is the last one.
func (s *store) closeDB() error {
	if s.db == nil {
		return nil
	}
	db := s.db
	s.db = nil
	return db.Close()
}

// close is the end of the store.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	latched := s.failure() != nil
	if !latched && !s.memory && s.db != nil {
		s.flush()
	}
	err := s.closeDB()
	s.cache.Unref()
	if latched { // it was reported when it happened
		return nil
	}
	return err
}

// flush moves what the WAL holds into tables: the next start is quick, and damage to tables is always noticed, while a damaged
// WAL seems to end early. If it does not work out, nothing is lost.
func (s *store) flush() {
	done, err := s.db.AsyncFlush()
	if err != nil {
		s.logger.Warn("flushing the storage", "err", err)
		return
	}
	select {
	case <-done:
	case <-s.failed():
	case <-time.After(flushTimeout):
		s.logger.Warn("flushing the storage takes too long")
	}
}

// pebbleLogger passes Pebble's log on and turns its fatal errors into the latch.
type pebbleLogger struct{ s *store }

func (l pebbleLogger) Infof(format string, args ...any) {
	l.s.logger.Debug(fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.s.logger.Error(fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) { l.s.fail(fmt.Errorf(format, args...)) }
