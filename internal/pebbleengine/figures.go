package pebbleengine

import "github.com/cockroachdb/pebble/v2"

// Figures are what the storage of an engine is doing, for operators.
type Figures struct {
	Namespaces  int    // with an open log
	DiskBytes   uint64 // of files, write-ahead log and what is about to be deleted included
	FreeBytes   uint64 // of the file system, when last looked at; 0 where that is not known
	Reserve     uint64 // free bytes below which appends are refused
	WALBytes    uint64 // of live write-ahead logs
	WALWritten  uint64 // bytes written to write-ahead logs, ever
	Memtables   uint64 // bytes
	Flushes     int64
	Compactions int64
	Debt        uint64 // bytes that compactions have yet to look at
	ReadAmp     int    // files that a read looks into
	Failed      bool   // the disk takes no writes
}

// Figures reads the figures of the disk's store; zeros while it cannot be opened.
func (e *Engine) Figures() Figures {
	e.mu.Lock()
	f := Figures{Namespaces: len(e.logs)}
	e.mu.Unlock()
	f.Failed = e.disk.failure() != nil
	e.space.mu.Lock()
	f.FreeBytes, f.Reserve = e.space.free, e.space.reserve
	e.space.mu.Unlock()
	e.disk.mu.RLock()
	defer e.disk.mu.RUnlock()
	if e.disk.db != nil {
		f.add(e.disk.db.Metrics())
	}
	return f
}

func (f *Figures) add(m *pebble.Metrics) {
	f.DiskBytes = m.DiskSpaceUsage()
	f.WALBytes, f.WALWritten = m.WAL.PhysicalSize, m.WAL.BytesWritten
	f.Memtables = m.MemTable.Size
	f.Flushes, f.Compactions = m.Flush.Count, m.Compact.Count
	f.Debt, f.ReadAmp = m.Compact.EstimatedDebt, m.ReadAmp()
}
