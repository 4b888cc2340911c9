package pebbleengine

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file system under one open database. It does two things that Pebble leaves to its user.
//
// Failures. When a write to the WAL or the manifest fails, Pebble panics in places where it holds its own locks, which
// nobody can recover from. So the guard reports the first such failure to the store, which is then latched and acknowledges
// nothing more, and freezes: from there on it answers success to whatever would change log, manifest or directory, and does
// nothing. What is on disk stays as it was at the failure, whole, until the database is closed and another one opened.
// Tables (flushes, compactions) are different: Pebble tries those again by itself.
//
// Levels. Pebble writes a commit to the operating system only when a sync is asked for. Commits of namespaces with history "os"
// therefore ask for one, and the guard leaves the fsync out while no commit waits for more. A WAL is always synced
// before it is closed, as Pebble needs it.
type guard struct {
	vfs.FS
	failed func(error)
	// durable counts the commits in progress that need an fsync.
	durable atomic.Int32
	// serving is set when the database is open; before that, errors are Pebble's to handle.
	serving atomic.Bool
	frozen  atomic.Bool
	full    atomic.Bool // the last table met a full disk
}

var _ vfs.FS = (*guard)(nil)

// critical reports whether Pebble cannot live with an error on the file.
func critical(name string) bool {
	return !strings.HasSuffix(name, ".sst") && !strings.HasSuffix(name, ".blob")
}

// do runs a change of a critical file and returns what Pebble shall see.
func (g *guard) do(change func() error) error {
	if g.frozen.Load() {
		return nil
	}
	err := change()
	if err == nil || !g.serving.Load() {
		return err
	}
	g.frozen.Store(true)
	g.failed(err)
	return nil
}

// file opens a critical file by open; after a failure it is one that swallows everything.
func (g *guard) file(name string, open func() (vfs.File, error)) (vfs.File, error) {
	if !critical(name) {
		return open()
	}
	var f vfs.File
	err := g.do(func() (err error) {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	if f == nil {
		f = nowhere{}
	}
	return &guarded{File: f, g: g, wal: strings.HasSuffix(name, ".log")}, nil
}

// Create implements vfs.FS. Pebble repeats a flush that met a full disk at once; that is slowed down here.
func (g *guard) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if !critical(name) {
		return g.table(func() (vfs.File, error) { return g.FS.Create(name, c) })
	}
	return g.file(name, func() (vfs.File, error) { return g.FS.Create(name, c) })
}

// fullPause is how long a table waits after one that met a full disk.
const fullPause = 100 * time.Millisecond

func (g *guard) table(create func() (vfs.File, error)) (vfs.File, error) {
	if g.full.Swap(false) {
		time.Sleep(fullPause)
	}
	f, err := create()
	if err != nil {
		g.full.Store(errors.Is(err, syscall.ENOSPC))
		return nil, err
	}
	return &tableFile{File: f, g: g}, nil
}

// tableFile notices a full disk.
type tableFile struct {
	vfs.File
	g *guard
}

func (f *tableFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	if errors.Is(err, syscall.ENOSPC) {
		f.g.full.Store(true)
	}
	return n, err
}

// OpenReadWrite implements vfs.FS.
func (g *guard) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return g.file(name, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, c, opts...) })
}

// ReuseForWrite implements vfs.FS.
func (g *guard) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.file(to, func() (vfs.File, error) { return g.FS.ReuseForWrite(from, to, c) })
}

// OpenDir implements vfs.FS.
func (g *guard) OpenDir(name string) (vfs.File, error) {
	return g.file(name, func() (vfs.File, error) { return g.FS.OpenDir(name) })
}

// Remove implements vfs.FS. Nothing is removed after a failure: the manifest on disk may still refer to it.
func (g *guard) Remove(name string) error {
	if g.frozen.Load() {
		return nil
	}
	return g.FS.Remove(name)
}

// RemoveAll implements vfs.FS.
func (g *guard) RemoveAll(name string) error {
	if g.frozen.Load() {
		return nil
	}
	return g.FS.RemoveAll(name)
}

// Rename implements vfs.FS.
func (g *guard) Rename(from, to string) error {
	return g.do(func() error { return g.FS.Rename(from, to) })
}

// Link implements vfs.FS.
func (g *guard) Link(from, to string) error {
	return g.do(func() error { return g.FS.Link(from, to) })
}

// Lock implements vfs.FS. The engine holds a lock on the directory for as long as it lives, whatever is opened in it.
func (g *guard) Lock(string) (io.Closer, error) { return nowhere{}, nil }

// guarded is a critical file.
type guarded struct {
	vfs.File
	g       *guard
	wal     bool
	skipped atomic.Bool // an fsync was left out
}

func (f *guarded) Write(p []byte) (n int, err error) {
	n = len(p)
	err = f.g.do(func() (err error) {
		n, err = f.File.Write(p)
		return err
	})
	if err == nil {
		n = len(p)
	}
	return n, err
}

func (f *guarded) Sync() error { return f.sync(f.File.Sync) }

func (f *guarded) SyncData() error { return f.sync(f.File.SyncData) }

func (f *guarded) sync(full func() error) error {
	if f.wal && f.g.durable.Load() == 0 {
		f.skipped.Store(true)
		return nil
	}
	if err := f.g.do(full); err != nil {
		return err
	}
	f.skipped.Store(false)
	return nil
}

func (f *guarded) SyncTo(length int64) (full bool, err error) {
	err = f.g.do(func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

// Stat is what Pebble asks of a log file that it uses again.
func (f *guarded) Stat() (vfs.FileInfo, error) {
	var info vfs.FileInfo
	err := f.g.do(func() (err error) {
		info, err = f.File.Stat()
		return err
	})
	if err == nil && info == nil {
		info = nothing{}
	}
	return info, err
}

func (f *guarded) Close() error {
	if f.skipped.Load() {
		if err := f.g.do(f.File.SyncData); err != nil {
			return err
		}
	}
	err := f.File.Close()
	if f.g.serving.Load() && err != nil {
		return f.g.do(func() error { return err })
	}
	return err
}

// nowhere is a file that takes everything and keeps nothing.
type nowhere struct{}

func (nowhere) Close() error                           { return nil }
func (nowhere) Read([]byte) (int, error)               { return 0, io.EOF }
func (nowhere) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (nowhere) Write(p []byte) (int, error)            { return len(p), nil }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nowhere) Preallocate(_, _ int64) error           { return nil }
func (nowhere) Stat() (vfs.FileInfo, error)            { return nothing{}, nil }
func (nowhere) Sync() error                            { return nil }
func (nowhere) SyncTo(int64) (bool, error)             { return false, nil }
func (nowhere) SyncData() error                        { return nil }
func (nowhere) Prefetch(_, _ int64) error              { return nil }
func (nowhere) Fd() uintptr                            { return vfs.InvalidFd }

// nothing describes an empty file.
type nothing struct{}

func (nothing) Name() string           { return "" }
func (nothing) Size() int64            { return 0 }
func (nothing) Mode() os.FileMode      { return 0 }
func (nothing) ModTime() time.Time     { return time.Time{} }
func (nothing) IsDir() bool            { return false }
func (nothing) Sys() any               { return nil }
func (nothing) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
