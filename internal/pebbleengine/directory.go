package pebbleengine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What lies in a data directory, beside the ballast file.
const (
	markerName = "RUNNEL" // says that the directory is ours, and its format
	lockName   = "LOCK"
	storeName  = "log" // the Pebble database
	marker     = "runnel data directory, format 1\n"
)

// openDirectory makes sure that the directory is ours and nobody else's, and locks it. Its errors are one line.
func openDirectory(f vfs.FS, dir string) (io.Closer, error) {
	if dir == "" {
		return nil, errors.New("no data directory given; choose one with --data")
	}
	fresh, err := inspect(f, dir)
	if err != nil {
		return nil, err
	}
	lock, err := prepare(f, dir, fresh)
	if err == nil {
		return lock, nil
	}
	switch {
	case isLocked(err):
		return nil, fmt.Errorf("data directory %q is in use by another Runnel process; stop it or choose another directory with --data", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no permission to use data directory %q: %s; change its owner or choose another directory with --data", dir, oneLine(err))
	default:
		return nil, fmt.Errorf("cannot use data directory %q: %s", dir, oneLine(err))
	}
}

// inspect reports whether the directory is new to us.
func inspect(f vfs.FS, dir string) (fresh bool, err error) {
	switch info, err := f.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("cannot use data directory %q: %w", dir, err)
	case !info.IsDir():
		return false, fmt.Errorf("data directory %q is a file; choose a directory with --data", dir)
	}
	entries, err := f.List(dir)
	if err != nil {
		return false, fmt.Errorf("cannot read data directory %q: %w; change its owner or choose another directory with --data", dir, err)
	}
	if slices.Contains(entries, markerName) {
		return false, checkMarker(f, f.PathJoin(dir, markerName), dir)
	}
	// A start that was cut short leaves a lock or half a marker; new file systems have lost+found.
	harmless := []string{lockName, markerName + ".new", "lost+found"}
	if i := slices.IndexFunc(entries, func(e string) bool { return !slices.Contains(harmless, e) }); i >= 0 {
		return false, fmt.Errorf("%q holds %q and is not a Runnel data directory; choose another directory with --data", dir, entries[i])
	}
	return true, nil
}

func checkMarker(f vfs.FS, path, dir string) error {
	file, err := f.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read data directory %q: %w; change its owner or choose another directory with --data", dir, err)
	}
	text, err := io.ReadAll(io.LimitReader(file, 256))
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cannot read data directory %q: %w", dir, err)
	}
	if string(text) != marker {
		return fmt.Errorf("data directory %q says %q and this version of Runnel reads %q; use the version that wrote it",
			dir, strings.TrimSpace(string(text)), strings.TrimSpace(marker))
	}
	return nil
}

// prepare takes the lock and creates what is missing.
func prepare(f vfs.FS, dir string, fresh bool) (io.Closer, error) {
	if err := f.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := f.Lock(f.PathJoin(dir, lockName))
	if err != nil {
		return nil, err
	}
	if err := fill(f, dir, fresh); err != nil {
		lock.Close() // there is an error to report already
		return nil, err
	}
	return lock, nil
}

func fill(f vfs.FS, dir string, fresh bool) error {
	if fresh { // before anything else: what follows would make the directory look foreign
		if err := writeMarker(f, dir); err != nil {
			return err
		}
	}
	if err := f.MkdirAll(f.PathJoin(dir, storeName), 0o700); err != nil {
		return err
	}
	// New directories survive a power loss only when their parents are synced.
	return errors.Join(syncDirectory(f, dir), syncDirectory(f, f.PathDir(dir)))
}

func writeMarker(f vfs.FS, dir string) error {
	path := f.PathJoin(dir, markerName)
	file, err := f.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = file.Write([]byte(marker))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return f.Rename(path+".new", path)
}

func syncDirectory(f vfs.FS, path string) error {
	d, err := f.OpenDir(path)
	if errors.Is(err, fs.ErrPermission) { // the parent may be somebody else's: then it was not we who changed it
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// isLocked tells a directory that somebody holds from one that cannot be used: fcntl answers EAGAIN or EACCES for another
// process, Pebble's table of locks has its own words for this one.
func isLocked(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held by current process")
}
