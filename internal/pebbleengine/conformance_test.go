package pebbleengine

import (
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/engine/enginetest"
)

var allHistories = []engine.History{engine.HistoryDisk, engine.HistoryOS, engine.HistoryMemory, engine.HistoryNone}

// The suite that every engine must pass, on a file system in memory that can lose its power, fail and be full.
func TestConformance(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{Histories: allHistories, Clock: true, Storage: func(enginetest.TB) enginetest.Storage {
		return newUnreliable(vfs.NewCrashableMem()).storage()
	}})
}

// The same on the real file system, as far as that can be brought to it, where it makes a difference.
func TestConformanceOnDisk(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{Histories: allHistories[:2], Clock: true, Storage: func(t enginetest.TB) enginetest.Storage {
		return enginetest.Storage{Open: opener(smallRoom{vfs.Default}, t.TempDir())}
	}})
}

// smallRoom is a file system that seems to be of 64 MiB, so that the ballast of each case is small.
type smallRoom struct{ vfs.FS }

func (smallRoom) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{TotalBytes: 64 << 20, AvailBytes: 64 << 20}, nil
}

func opener(fs vfs.FS, dir string) func(enginetest.Options) (engine.Engine, error) {
	return func(o enginetest.Options) (engine.Engine, error) {
		return Open(Options{Dir: dir, FS: fs, Namespace: o.Namespace, Now: o.Now, Logger: discard})
	}
}

// unreliable is a file system in memory with everything that can happen to one.
type unreliable struct {
	*faults
	mem  *vfs.MemFS
	full atomic.Bool
}

func newUnreliable(mem *vfs.MemFS) *unreliable { return &unreliable{faults: newFaults(mem), mem: mem} }

func (u *unreliable) GetDiskUsage(dir string) (vfs.DiskUsage, error) {
	if u.full.Load() {
		return vfs.DiskUsage{TotalBytes: 1 << 30, UsedBytes: 1 << 30}, nil
	}
	return u.faults.GetDiskUsage(dir)
}

func (u *unreliable) storage() enginetest.Storage {
	return enginetest.Storage{
		Open: opener(u, "data"),
		Crash: func(unsynced int, rng *rand.Rand) enginetest.Storage {
			return newUnreliable(u.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})).storage()
		},
		Fail: u.failAfter,
		Full: u.full.Store,
	}
}

// failAfter makes a number of writes and syncs fail, after others that do not.
func (u *unreliable) failAfter(after, times int) {
	var n atomic.Int64
	fail := func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpCreate, errorfs.OpReuseForWrite:
			if i := n.Add(1); i > int64(after) && i <= int64(after)+int64(times) {
				return syscall.EIO
			}
		}
		return nil
	}
	u.fail.Store(&fail)
}
