package pebbleengine

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
)

// Figures reads the figures of the disk's store; zeros while it cannot be opened.
func (e *Engine) Figures() engine.Figures {
	e.mu.Lock()
	f := engine.Figures{Namespaces: len(e.logs)}
	e.mu.Unlock()
	f.Failed = e.disk.failure() != nil
	e.space.mu.Lock()
	f.FreeBytes, f.Reserve = e.space.free, e.space.reserve
	e.space.mu.Unlock()
	e.disk.mu.RLock()
	defer e.disk.mu.RUnlock()
	if e.disk.db != nil {
		measure(&f, e.disk.db.Metrics())
	}
	return f
}

func measure(f *engine.Figures, m *pebble.Metrics) {
	f.DiskBytes = m.DiskSpaceUsage()
	f.WALBytes, f.WALWritten = m.WAL.PhysicalSize, m.WAL.BytesWritten
	f.Memtables = m.MemTable.Size
	f.Flushes, f.Compactions = m.Flush.Count, m.Compact.Count
	f.Debt, f.ReadAmp = m.Compact.EstimatedDebt, m.ReadAmp()
}
