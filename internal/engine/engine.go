// Package engine is the contract between Runnel and whatever stores its events: an append-only log for each namespace.
//
// What every engine guarantees, and package enginetest checks:
//
//   - Offsets of a namespace rise strictly within an epoch, from 1. Timestamps never fall.
//   - Nothing above Head is ever seen: not by Read, Last, Tail, Topic, deduplication or an acknowledgement. Head moves only
//     when the promised durability is reached. An Append that returned without error is readable until retention removes it.
//   - A Read covers its range without a hole: every matching event in (After, Scanned] is in the page, was trimmed
//     (PositionGoneError), or is listed in Damaged.
//   - An append whose outcome is unknown fails with ErrStorageFailed and may or may not show up later; the same event id
//     sent again is stored once either way.
//   - A namespace that was deleted begins anew with its next use: from offset 1, in an epoch that never was, remembering nothing. Its old Log
//     is over: State says what was, everything else fails with ErrDeleted, and an append that fails so is stored nowhere.
//
// All methods of Engine, Log and their implementations are safe for concurrent use unless said otherwise.
package engine

import (
	"context"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// Engine stores the logs of many namespaces.
type Engine interface {
	// Log opens a namespace's log, creating it if it is configured and new. ErrUnknownNamespace if it is not configured.
	Log(namespace string) (Log, error)
	// Delete removes a namespace for good: events, topics, event ids and epochs, whether its log is open or not, and whether it is still
	// configured or not. It is done when that outlives what the namespace's events outlive; what a crash before that leaves is all or nothing.
	// After ErrStorageFailed it is one or the other. ErrUnknownNamespace if the log is not open and nothing of it is stored.
	Delete(ctx context.Context, namespace string) error
	// Health is nil while the engine can write.
	Health() error
	// Close ends every Tail, fails later calls with ErrClosed, and waits until nothing is running.
	Close() error
}

// History says where a namespace keeps its events.
type History string

// The kinds of history.
const (
	HistoryDisk   History = "disk"   // acknowledged after fsync: survives power loss
	HistoryOS     History = "os"     // acknowledged after write: survives the death of the process
	HistoryMemory History = "memory" // kept in memory
	HistoryNone   History = "none"   // not kept: offsets are 0 outside the process, Read finds nothing
)

// Durability is what an acknowledgement under h means.
func (h History) Durability() runnelv1.Durability {
	switch h {
	case HistoryDisk:
		return runnelv1.Durability_DURABILITY_DISK
	case HistoryOS:
		return runnelv1.Durability_DURABILITY_OS
	case HistoryMemory:
		return runnelv1.Durability_DURABILITY_MEMORY
	default:
		return runnelv1.Durability_DURABILITY_NONE
	}
}

// Config is what an engine needs to know about a namespace. Zero limits mean no limit.
type Config struct {
	History     History
	MaxEvents   uint64        // retention: newest events kept
	MaxBytes    uint64        // retention: bytes of stored events kept
	MaxAge      time.Duration // retention: by timestamp
	DedupWindow time.Duration // how long event ids are remembered
	DedupIDs    int           // most event ids remembered; the oldest are forgotten first
}

// Entry is one event to append.
type Entry struct {
	Topic topic.Name
	// ID is the event id. Dedup says that the publisher chose it, so that it may come again.
	ID    string
	Dedup bool
	// Body is the encoded runnel.v1.Event without timestamp and offset, topic first (see package wire). The engine keeps it:
	// it must not be changed after Append.
	Body []byte
	// Expected, where Conditional is set, must be the offset of the topic's newest retained event (0: none), pending
	// appends included.
	Expected    uint64
	Conditional bool
}

// Result is the fate of one Entry.
type Result struct {
	Offset    uint64 // 0 where nothing is kept
	Timestamp int64  // Unix milliseconds; 0 for a duplicate whose event retention has removed, where that is not remembered
	Duplicate bool
	// Err is *ConflictError, or ErrSkipped after a failure under AppendOrdered; nil if the event is stored.
	Err error
}

// AppendMode says what one failed entry means for those behind it.
type AppendMode int

const (
	// AppendEach: every entry stands for itself.
	AppendEach AppendMode = iota
	// AppendOrdered: behind the first failed entry nothing is stored; those results hold ErrSkipped.
	AppendOrdered
)

// State is what is known of a log at one moment.
type State struct {
	Epoch      string // current epoch: 16 hexadecimal digits
	Oldest     uint64 // oldest retained offset; Head+1 if nothing is retained
	Head       uint64 // newest offset that may be seen; 0 before the first event of all
	Durability runnelv1.Durability
	History    bool // false: events are not kept
}

// Position is a place in a log.
type Position struct {
	Epoch  string
	Offset uint64
}

// Event is a stored event as readers see it.
type Event struct {
	Offset    uint64 // internal sequence number where nothing is kept
	Topic     topic.Name
	Timestamp int64
	// Wire is the complete encoded runnel.v1.Event, offset included where the namespace keeps history. Never changed after
	// it is handed out.
	Wire []byte
}

// ReadRequest asks for a page of a log. Pattern must lie in the log's namespace.
type ReadRequest struct {
	Pattern topic.Pattern // the zero Pattern: every topic of the namespace
	After   uint64        // read what follows this offset
	To      uint64        // up to and including this offset; 0 or above Head: Head
	// MaxEvents and MaxBytes bound the page; at least one event is returned if there is one. MaxScan bounds how many
	// events are looked at, so that a page of a rare pattern ends in time. 0: engine's defaults.
	MaxEvents int
	MaxBytes  int
	MaxScan   int
}

// Page is the answer to a ReadRequest.
type Page struct {
	Events []Event
	// Scanned: the page covers (After, Scanned]. Below To there is more to read. At least After.
	Scanned uint64
	// Damaged lists ranges inside the page whose stored bytes are corrupt, ascending.
	Damaged []Range
}

// Range is offsets From to To, inclusive.
type Range struct{ From, To uint64 }

// TopicState describes a topic with retained events.
type TopicState struct {
	Topic  topic.Name
	Oldest uint64
	Newest uint64
	Last   Event // the newest event
}

// Log is the log of one namespace.
type Log interface {
	Namespace() string
	State() State
	// Append appends entries in order and returns one Result each, after those stored are as durable as promised. An error
	// means that the fate of every entry is unknown (ErrStorageFailed) or that none is stored (all other errors). Entries of
	// concurrent Appends commit together. If ctx ends first the entries may still be stored: ctx's error is then returned.
	Append(ctx context.Context, entries []Entry, mode AppendMode) ([]Result, error)
	// Check says whether the log contains p: *EpochChangedError, *PositionGoneError, or nil. An empty epoch is the current one.
	Check(p Position) error
	// Read returns a page. *PositionGoneError if After+1 is below Oldest: nothing is skipped silently. A log without
	// history is always read to its end.
	Read(ctx context.Context, r ReadRequest) (Page, error)
	// ReadAt returns events by offset, ascending, as many as fit MaxBytes (at least one); Scanned is the last offset dealt
	// with. Offsets that were trimmed or are damaged are listed in Damaged.
	ReadAt(ctx context.Context, offsets []uint64, maxBytes int) (Page, error)
	// LastOffsets returns, ascending, the offset of the newest event at or below upTo of each topic that matches p; at
	// most limit topics, else *TooManyTopicsError.
	LastOffsets(ctx context.Context, p topic.Pattern, upTo uint64, limit int) ([]uint64, error)
	// AfterLast returns the offset after which exactly the newest n events that match p, at or below upTo, follow; fewer
	// if fewer are retained.
	AfterLast(ctx context.Context, p topic.Pattern, n int, upTo uint64) (uint64, error)
	// BeforeTime returns the offset after which events accepted at or after t (Unix milliseconds) follow; Head if none is.
	BeforeTime(ctx context.Context, t int64) (uint64, error)
	// Topic describes one topic; ok is false if it has no retained events.
	Topic(ctx context.Context, n topic.Name) (s TopicState, ok bool, err error)
	// Topics lists topics that match p, in byte order, after the name after, at most limit; more says whether others follow.
	Topics(ctx context.Context, p topic.Pattern, after string, limit int) (list []TopicState, more bool, err error)
	// Trim removes events up to an offset, as retention does, and returns the oldest offset retained then; Head+1 if that is none. What is above
	// Head stays to come. It is done when that outlives what the namespace's events outlive. ErrNoHistory where nothing is kept.
	Trim(ctx context.Context, upTo uint64) (oldest uint64, err error)
	// Tail follows the log: everything above after. A log without history is followed from now on, whatever after is.
	Tail(after uint64) (Tail, error)
}

// Tail is a follower of one log. Next may be called by one goroutine at a time, Close by any.
type Tail interface {
	// Next waits for events and returns some, in order, without a hole; through is the offset up to which the tail has now
	// seen everything (it may move without events). ErrEpochChanged (as *EpochChangedError) when the log was reopened and
	// the tail's past may be gone, ErrDeleted when it was deleted: the tail is then over. ErrClosed after Close. Damaged as in Page.
	Next(ctx context.Context) (page Page, err error)
	Close()
}
