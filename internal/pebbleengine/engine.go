// Package pebbleengine is the embedded engine: logs in one directory, on the Pebble key-value store.
//
// One committer goroutine per namespace owns all writes of that namespace. Namespaces kept on disk share one database, so
// their commits share fsyncs; namespaces kept in memory share another, in an in-memory file system; namespaces without
// history are a sequence number and a ring of recent events. When a write or fsync fails the database is latched: nothing is
// acknowledged any more, reads go on up to the head, and the engine reopens the database in the process, under a new epoch.
//
// Engine and its logs are safe for concurrent use.
package pebbleengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/opens"
)

// Options configure Open. Dir, Namespace and Logger are required.
type Options struct {
	Dir string // created if missing, mode 0700
	// Namespace returns a namespace's configuration, or false if there is no such namespace. It is called on a namespace's
	// first use, and by Configure. A namespace may change between disk and os from one start to the next and keeps its events.
	Namespace func(name string) (engine.Config, bool)
	Logger    *slog.Logger
	// MaxNamespaces bounds how many namespaces are open; 0: 1,000.
	MaxNamespaces int

	FS  vfs.FS           // tests: the file system, which also says how much space is free; nil: the real one
	Now func() time.Time // tests: the clock; nil: time.Now
}

// Bytes of the block caches of the two databases.
const (
	diskCache   = 64 << 20
	memoryCache = 8 << 20
	memoryTable = 16 << 20
)

// Engine is an engine.Engine.
type Engine struct {
	// Fixed after Open.
	o     Options
	lock  io.Closer
	disk  *store
	space *space
	ctx   context.Context
	stop  context.CancelFunc
	group sync.WaitGroup

	opens *opens.Logs[*log]

	mu     sync.Mutex
	closed bool
	memory *memoryStore
	logs   []*log // those whose stores are reopened with them
}

// memoryStore is opened with the first namespace kept in memory.
type memoryStore struct {
	once  sync.Once
	store *store
	err   error
}

var _ engine.Engine = (*Engine)(nil)

// Open opens or creates the directory. Errors are one line and say what to do. The engine runs until Close.
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
	lock, err := openDirectory(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	e := &Engine{o: o, lock: lock, space: newSpace(o.FS, o.Dir, o.Logger), memory: &memoryStore{}}
	e.opens = opens.New[*log](o.MaxNamespaces, o.known, e.enter)
	fs := vfs.OnDiskFull(o.FS, e.space.dropBallast)
	e.disk = newStore(o.FS.PathJoin(o.Dir, storeName), fs, e.space.table, diskCache, false, o.Logger)
	if err := e.openDisk(); err != nil {
		lock.Close() // there is an error to report already
		return nil, fmt.Errorf("cannot open data directory %q: %s", o.Dir, oneLine(err))
	}
	e.space.keepBallast()
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.group.Go(func() { e.repair(e.disk) })
	e.group.Go(func() { e.space.watch(e.ctx) })
	return e, nil
}

func (e *Engine) openDisk() error {
	err := e.disk.open(false)
	if err == nil {
		err = e.disk.failure()
	}
	if err == nil {
		err = e.disk.names.load(e.disk.db)
	}
	if err != nil {
		return errors.Join(err, e.disk.close())
	}
	return nil
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (o *Options) known(namespace string) bool {
	_, ok := o.Namespace(namespace)
	return ok
}

// enter admits a call, unless the engine is closing. Close waits until it leaves.
func (e *Engine) enter() (leave func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, engine.ErrClosed
	}
	e.group.Add(1)
	return e.group.Done, nil
}

// Log implements engine.Engine.
func (e *Engine) Log(namespace string) (engine.Log, error) {
	l, err := e.opens.Open(namespace, func() (*log, error) {
		l, err := e.openLog(namespace)
		if err == nil {
			e.group.Go(l.run)
		}
		return l, err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Opened returns a namespace's log if it is open, else nil.
func (e *Engine) Opened(namespace string) engine.Log {
	if l, ok := e.opens.Opened(namespace); ok {
		return l
	}
	return nil
}

// Configure asks for the configurations of all open namespaces again and puts their limits in force, soon. Their history stays as it is,
// and so does a namespace that is gone. Of two calls at once either may be the one whose limits stay.
func (e *Engine) Configure() {
	for _, l := range e.opens.All(true) { // what is about to be opened may have asked before
		if cfg, ok := e.o.Namespace(l.name); ok {
			l.limit(cfg)
		}
	}
}

func (e *Engine) openLog(namespace string) (*log, error) {
	cfg, ok := e.o.Namespace(namespace)
	if !ok {
		return nil, engine.ErrUnknownNamespace
	}
	l := newLog(e, namespace, cfg)
	switch cfg.History {
	case engine.HistoryNone:
		l.epochs = []epoch{{id: newEpoch(), first: 1}}
		return l, nil
	case engine.HistoryMemory:
		s, err := e.memory.open(e.o.Logger)
		if err != nil {
			return nil, err
		}
		l.st = s
	case engine.HistoryDisk, engine.HistoryOS:
		l.st = e.disk
	default:
		return nil, fmt.Errorf("namespace %q has unknown history %q", namespace, cfg.History)
	}
	db, err := l.st.acquire()
	if err != nil {
		return nil, err
	}
	defer l.st.release()
	if err := l.st.failure(); err != nil {
		return nil, err
	}
	l.id = l.st.names.number(namespace)
	if err := l.load(db); err != nil {
		return nil, readError(err)
	}
	// Still with the store acquired: a reopen either comes before load or finds the log in the list.
	e.mu.Lock()
	defer e.mu.Unlock()
	e.logs = append(e.logs, l)
	return l, nil
}

func (m *memoryStore) open(logger *slog.Logger) (*store, error) {
	m.once.Do(func() {
		s := newStore(storeName, vfs.NewMem(), memoryTable, memoryCache, true, logger)
		if m.err = s.open(false); m.err == nil {
			m.store = s
		}
	})
	if m.err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrStorageFailed, m.err)
	}
	return m.store, nil
}

// Health implements engine.Engine.
func (e *Engine) Health() error {
	if err := e.disk.failure(); err != nil {
		return err
	}
	return e.space.take(0)
}

// Close implements engine.Engine. Only the first call does something.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.group.Wait()
	err := e.disk.close()
	if s := e.memory.store; s != nil {
		err = errors.Join(err, s.close())
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
		for wait := 100 * time.Millisecond; s.failure() != nil; wait = min(2*wait, 2*time.Second) {
			select {
			case <-e.ctx.Done():
				return
			case <-time.After(jitter(wait)):
			}
			if err := s.reopen(e.space.take(0), func(db *pebble.DB) error { return e.reload(s, db) }); err != nil {
				e.o.Logger.Error("storage cannot be reopened, trying again", "err", err)
				continue
			}
			e.o.Logger.Info("storage is open again, under a new epoch")
		}
	}
}

// reload reads all logs of a reopened store anew. No committer is running: the store is held for the exchange.
func (e *Engine) reload(s *store, db *pebble.DB) error {
	e.mu.Lock()
	logs := append([]*log(nil), e.logs...)
	e.mu.Unlock()
	for _, l := range logs {
		if l.st == s {
			if err := l.load(db); err != nil {
				return err
			}
		}
	}
	return nil
}
