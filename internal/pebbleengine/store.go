package pebbleengine

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// store is one Pebble database and the latch that closes it to writers.
//
// Pebble answers a failed commit by Logger.Fatalf and, where that returns, reports success. So Fatalf latches the store,
// and nothing that was applied counts before the latch was looked at again. A latched store is replaced by reopen.
type store struct {
	// Fixed after openStore.
	dir    string
	fs     vfs.FS
	lock   *pebble.Lock
	memory bool
	cache  *pebble.Cache
	table  uint64
	logger *slog.Logger
	broken chan struct{} // receives once per latching

	// mu is held for reading by whoever uses db, for writing by reopen.
	mu sync.RWMutex
	db *pebble.DB

	latch struct {
		sync.Mutex
		err error
	}
}

func (s *store) open() error {
	o := &pebble.Options{
		FS:                          s.fs,
		Lock:                        s.lock,
		Cache:                       s.cache,
		Logger:                      pebbleLogger{s},
		DisableWAL:                  s.memory,
		MemTableSize:                s.table,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		BytesPerSync:                512 << 10,
		WALBytesPerSync:             512 << 10,
		FormatMajorVersion:          pebble.FormatNewest,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { s.logger.Error("storage background error", "err", err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { s.logger.Error("storage is damaged", "info", i.String()) },
			DiskSlow:        func(i pebble.DiskSlowInfo) { s.logger.Warn("disk is slow", "info", i.String()) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) { s.logger.Warn("writes stall", "reason", i.Reason) },
		},
	}
	db, err := pebble.Open(s.dir, o)
	if err != nil {
		return err
	}
	if err := s.failure(); err != nil {
		return fmt.Errorf("%w (close: %v)", err, db.Close())
	}
	s.db = db
	return nil
}

// failure is why the store takes no writes; nil if it does.
func (s *store) failure() error {
	s.latch.Lock()
	defer s.latch.Unlock()
	return s.latch.err
}

func (s *store) fail(err error) {
	s.latch.Lock()
	defer s.latch.Unlock()
	if s.latch.err != nil {
		return
	}
	s.latch.err = err
	select {
	case s.broken <- struct{}{}:
	default:
	}
}

// apply commits b. The caller holds mu for reading. An error means that b may or may not be there after a reopen.
func (s *store) apply(b *pebble.Batch, sync bool) error {
	o := pebble.NoSync
	if sync {
		o = pebble.Sync
	}
	if err := s.db.Apply(b, o); err != nil {
		s.fail(err)
	}
	return s.failure()
}

// reopen replaces a latched database by a fresh one from the same directory, then runs load under the same lock.
func (s *store) reopen(load func() error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db != nil {
		if err := closeBroken(s.db); err != nil {
			s.logger.Warn("closing the failed storage", "err", err)
		}
		s.db = nil
	}
	s.latch.Lock()
	s.latch.err = nil
	s.latch.Unlock()
	if err := s.open(); err != nil {
		s.fail(err)
		return err
	}
	if err := load(); err != nil {
		s.fail(err)
		return err
	}
	return s.failure()
}

// closeBroken closes a database that has failed; Pebble may panic when its state is beyond its own expectations.
func closeBroken(db *pebble.DB) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return db.Close()
}

// pebbleLogger passes Pebble's log on and turns its fatal errors into the latch.
type pebbleLogger struct{ s *store }

func (l pebbleLogger) Infof(format string, args ...any) {
	l.s.logger.Debug(fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.s.logger.Error(fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	l.s.logger.Error("storage failed: writes are refused until it is reopened", "err", err)
	l.s.fail(err)
}
