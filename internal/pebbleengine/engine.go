// Package pebbleengine is the embedded engine: logs in one directory, on the Pebble key-value store.
//
// One committer goroutine per namespace owns all writes of that namespace. Namespaces kept on disk share one database, so
// their commits share fsyncs; namespaces kept in memory share another, in an in-memory file system; namespaces without
// history are a sequence number and a ring of recent events. When a write or fsync fails the database is latched: nothing is
// acknowledged any more, reads go on up to the head, and the engine reopens the database in the process, under a new epoch.
package pebbleengine

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Options configure Open. Dir, Namespace and Logger are required.
type Options struct {
	Dir string // created if missing
	// Namespace returns a namespace's configuration, or false if there is no such namespace. It is called once per namespace,
	// on first use.
	Namespace func(name string) (engine.Config, bool)
	Logger    *slog.Logger
	// MaxNamespaces bounds how many namespaces are open; 0: 1,000.
	MaxNamespaces int

	FS  vfs.FS           // tests: the file system; nil: the real one
	Now func() time.Time // tests: the clock; nil: time.Now
}

// Engine is an engine.Engine. Safe for concurrent use.
type Engine struct {
	// Fixed after Open.
	o     Options
	fs    vfs.FS // o.FS, without the ballast's wrapper
	lock  *pebble.Lock
	disk  *store
	space *space
	ctx   context.Context
	stop  context.CancelFunc
	group sync.WaitGroup

	mu     sync.Mutex
	closed bool
	memory *store // opened with the first namespace kept in memory
	logs   map[string]*log
}

var _ engine.Engine = (*Engine)(nil)

// Open opens or creates the directory. Errors are one line and say what to do.
func Open(o Options) (*Engine, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxNamespaces == 0 {
		o.MaxNamespaces = 1000
	}
	e := &Engine{o: o, fs: o.FS, logs: map[string]*log{}}
	if err := e.openDirectory(); err != nil {
		return nil, err
	}
	e.space = newSpace(e.fs, o.Dir)
	e.space.keepBallast(o.Logger)
	e.disk = &store{
		dir: e.fs.PathJoin(o.Dir, "log"), fs: vfs.OnDiskFull(e.fs, e.space.dropBallast), lock: e.lock,
		table: e.space.table, logger: o.Logger, broken: make(chan struct{}, 1), cache: pebble.NewCache(64 << 20),
	}
	err := e.disk.open()
	if err == nil {
		err = e.checkFormat()
	}
	if err != nil {
		if e.disk.db != nil {
			err = errors.Join(err, e.disk.db.Close())
		}
		e.disk.cache.Unref()
		return nil, errors.Join(fmt.Errorf("cannot open data directory %q: %w", o.Dir, err), e.lock.Close())
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.group.Go(func() { e.repair(e.disk) })
	e.group.Go(e.watchSpace)
	return e, nil
}

// openDirectory makes sure that the directory is ours and nobody else's, and locks it.
func (e *Engine) openDirectory() error {
	dir, logDir := e.o.Dir, e.fs.PathJoin(e.o.Dir, "log")
	if entries, err := e.fs.List(dir); err == nil && len(entries) > 0 {
		if _, err := e.fs.Stat(logDir); err != nil {
			return fmt.Errorf("%q is not empty and not a Runnel data directory; choose another with --data", dir)
		}
	}
	if err := e.fs.MkdirAll(logDir, 0o700); err != nil {
		return fmt.Errorf("cannot use data directory %q: %w", dir, err)
	}
	if err := e.syncDirectories(e.fs.PathDir(dir), dir); err != nil {
		return fmt.Errorf("cannot use data directory %q: %w", dir, err)
	}
	lock, err := pebble.LockDirectory(logDir, e.fs)
	if err != nil {
		if isLocked(err) {
			return fmt.Errorf("data directory %q is in use by another Runnel process; stop it or choose another directory with --data", dir)
		}
		return fmt.Errorf("cannot use data directory %q: %w", dir, err)
	}
	e.lock = lock
	return nil
}

// syncDirectories makes new directories survive a power loss: their entries live in their parents.
func (e *Engine) syncDirectories(paths ...string) error {
	for _, path := range paths {
		d, err := e.fs.OpenDir(path)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) checkFormat() error {
	v, closer, err := e.disk.db.Get(keyFormat)
	if errors.Is(err, pebble.ErrNotFound) {
		return e.disk.db.Set(keyFormat, []byte{format}, pebble.Sync)
	}
	if err != nil {
		return err
	}
	defer closer.Close()
	if len(v) != 1 || v[0] != format {
		return fmt.Errorf("it has format %v and this version of Runnel reads format %d", v, format)
	}
	return nil
}

// Log implements engine.Engine.
func (e *Engine) Log(namespace string) (engine.Log, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	if l := e.logs[namespace]; l != nil {
		return l, nil
	}
	if _, err := topic.ParseNamespace(namespace); err != nil {
		return nil, engine.ErrUnknownNamespace
	}
	cfg, ok := e.o.Namespace(namespace)
	if !ok {
		return nil, engine.ErrUnknownNamespace
	}
	if len(e.logs) >= e.o.MaxNamespaces {
		return nil, engine.ErrTooManyNamespaces
	}
	// Opening reads the disk under the engine's lock: it happens once per namespace, and two opens of one must not meet.
	l, err := e.openLogLocked(namespace, cfg)
	if err != nil {
		return nil, err
	}
	e.logs[namespace] = l
	e.group.Go(l.run)
	return l, nil
}

func (e *Engine) openLogLocked(namespace string, cfg engine.Config) (*log, error) {
	l := newLog(e, namespace, cfg)
	switch cfg.History {
	case engine.HistoryNone:
		l.epochs = []epoch{{id: newEpoch(), first: 1}}
		return l, nil
	case engine.HistoryMemory:
		if err := e.openMemoryLocked(); err != nil {
			return nil, err
		}
		l.st = e.memory
	case engine.HistoryDisk, engine.HistoryOS:
		l.st = e.disk
	default:
		return nil, fmt.Errorf("namespace %q: unknown history %q", namespace, cfg.History)
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	if err := l.st.failure(); err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	}
	if err := e.space.check(); err != nil && !l.st.memory {
		return nil, err
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	}
	return l, nil
}

func (e *Engine) openMemoryLocked() error {
	if e.memory != nil {
		return nil
	}
	s := &store{dir: "log", fs: vfs.NewMem(), memory: true, table: 16 << 20, logger: e.o.Logger,
		broken: make(chan struct{}, 1), cache: pebble.NewCache(8 << 20)}
	if err := s.open(); err != nil {
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	}
	e.memory = s
	return nil
}

// Health implements engine.Engine.
func (e *Engine) Health() error {
	if err := e.disk.failure(); err != nil {
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, err)
	}
	return e.space.check()
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.stop()
	for _, l := range e.logs { // no more are added: closed is set
		l.wake()
	}
	e.group.Wait()
	var err error
	for _, s := range []*store{e.disk, e.memory} {
		if s == nil {
			continue
		}
		if s.db != nil {
			err = errors.Join(err, closeBroken(s.db))
		}
		s.cache.Unref()
	}
	return errors.Join(err, e.lock.Close())
}

// repair reopens a latched store until it works.
func (e *Engine) repair(s *store) {
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-s.broken:
		}
		for wait := 200 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
			select {
			case <-e.ctx.Done():
				return
			case <-time.After(wait):
			}
			err := s.reopen(func() error { return e.reload(s) })
			if err == nil {
				e.o.Logger.Info("storage is open again, under a new epoch")
				break
			}
			e.o.Logger.Error("storage cannot be reopened, trying again", "err", err)
		}
		select { // a latching that reopen has dealt with
		case <-s.broken:
		default:
		}
		if err := s.failure(); err != nil { // latched again since
			s.broken <- struct{}{}
		}
	}
}

// reload reads all logs of a reopened store anew. The store's lock is held for writing, so no committer is running.
func (e *Engine) reload(s *store) error {
	e.mu.Lock()
	logs := make([]*log, 0, len(e.logs))
	for _, l := range e.logs {
		if l.st == s {
			logs = append(logs, l)
		}
	}
	e.mu.Unlock()
	for _, l := range logs {
		if err := l.load(); err != nil {
			return err
		}
	}
	return nil
}

// newEpoch is 16 random hexadecimal digits.
func newEpoch() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// number returns the namespace's number, assigning one to a new namespace in b.
func (e *Engine) number(db *pebble.DB, b *pebble.Batch, name string) (uint32, error) {
	v, closer, err := db.Get(namespaceKey(name))
	if err == nil {
		defer closer.Close()
		if len(v) != 4 {
			return 0, errChecksum
		}
		return binary.BigEndian.Uint32(v), nil
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return 0, err
	}
	var highest uint32
	err = scan(db, keyNamespaces, after(keyNamespaces), func(_, v []byte) error {
		if len(v) == 4 {
			highest = max(highest, binary.BigEndian.Uint32(v))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	id := highest + 1
	return id, b.Set(namespaceKey(name), binary.BigEndian.AppendUint32(nil, id), nil)
}
