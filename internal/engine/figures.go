package engine

// Figures are what the storage of an engine is doing, for operators. What an engine does not have, or does not know, is zero.
type Figures struct {
	Namespaces  int    // with an open log
	DiskBytes   uint64 // of files, write-ahead log and what is about to be deleted included
	FreeBytes   uint64 // of the file system, when last looked at
	Reserve     uint64 // free bytes below which appends are refused
	WALBytes    uint64 // of live write-ahead logs
	WALWritten  uint64 // bytes written to write-ahead logs, ever
	Memtables   uint64 // bytes
	Flushes     int64
	Compactions int64
	Debt        uint64 // bytes that compactions have yet to look at
	ReadAmp     int    // files that a read looks into
	Failed      bool   // the storage takes no writes
}

// NamespaceState is a namespace whose log is open, for operators.
type NamespaceState struct {
	Namespace string
	State
	Bytes uint64 // of its retained events, as they are stored, before compression; 0 while that cannot be read
}
