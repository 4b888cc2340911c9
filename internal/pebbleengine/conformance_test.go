package pebbleengine

import (
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/engine/enginetest"
)

// TestConformance runs the suite that every engine must pass, on a file system in memory that can lose its power and be made
// to fail.
func TestConformance(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{
		Histories: append(histories, engine.HistoryNone), Clock: true,
		Storage: func(enginetest.TB) enginetest.Storage { return memStorage(vfs.NewCrashableMem()) },
	})
}

// TestConformanceOnDisk runs it on the real file system.
func TestConformanceOnDisk(t *testing.T) {
	enginetest.Run(t, enginetest.Factory{
		Histories: append(histories, engine.HistoryNone), Clock: true,
		Storage: func(t enginetest.TB) enginetest.Storage {
			return enginetest.Storage{Open: opener(vfs.Default, t.TempDir())}
		},
	})
}

func opener(fs vfs.FS, dir string) func(enginetest.Options) (engine.Engine, error) {
	return func(o enginetest.Options) (engine.Engine, error) {
		return Open(Options{Dir: dir, FS: fs, Namespace: o.Namespace, Now: o.Now, Logger: slog.New(slog.DiscardHandler)})
	}
}

func memStorage(mem *vfs.MemFS) enginetest.Storage {
	d := newSmallDisk(mem, 1<<30)
	var before, failing atomic.Int64
	d.onWrite = func() error {
		if before.Add(-1) >= 0 || failing.Add(-1) < 0 {
			return nil
		}
		return syscall.EIO
	}
	return enginetest.Storage{
		Open: opener(d, "data"),
		Crash: func(unsynced int, rng *rand.Rand) enginetest.Storage {
			return memStorage(mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng}))
		},
		Fail: func(after, times int) {
			failing.Store(int64(times))
			before.Store(int64(after))
		},
		Full: func(full bool) {
			d.free.Store(1 << 30)
			if full {
				d.free.Store(0)
			}
		},
	}
}
