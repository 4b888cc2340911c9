package engine

import (
	"errors"
	"fmt"
)

// Errors of every engine. Those with data are types; test for them with errors.As.
var (
	ErrUnknownNamespace = errors.New("namespace is not configured")
	ErrClosed           = errors.New("engine is closed")
	// ErrDeleted: the namespace was deleted. Engine.Log has its new log, if there is to be one.
	ErrDeleted = errors.New("the namespace was deleted")
	// ErrSkipped: an earlier entry of the same ordered Append failed.
	ErrSkipped = errors.New("an earlier event of the stream failed")
	// ErrStorageFull: there is no room for the event; nothing was stored. It is worth trying again later.
	ErrStorageFull = errors.New("storage is full")
	// ErrStorageFailed: the storage failed while writing; whether the event is stored is unknown.
	ErrStorageFailed = errors.New("storage failed")
	// ErrUnavailable: whatever keeps the events cannot be reached; nothing was stored. It is worth trying again later.
	ErrUnavailable = errors.New("storage is not reachable")
	// ErrCorrupt: stored bytes cannot be read and it is not known which events are concerned.
	ErrCorrupt = errors.New("stored data is damaged")
	// ErrNoHistory: the operation needs stored events and the namespace keeps none.
	ErrNoHistory = errors.New("namespace keeps no history")
	// ErrTooManyNamespaces: no more namespaces may be created.
	ErrTooManyNamespaces = errors.New("too many namespaces")
)

// ConflictError says that the topic's newest retained event was not the expected one.
type ConflictError struct{ Current uint64 }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the topic's newest event is at offset %d", e.Current)
}

// PositionGoneError says that retention removed what follows a position.
type PositionGoneError struct{ Oldest, Newest uint64 }

func (e *PositionGoneError) Error() string {
	return fmt.Sprintf("the log begins at offset %d and ends at %d", e.Oldest, e.Newest)
}

// EpochChangedError says that the log does not contain a position.
type EpochChangedError struct {
	Epoch string // the current epoch; empty if the log was deleted
	Head  uint64
}

func (e *EpochChangedError) Error() string {
	if e.Epoch == "" {
		return "the log does not contain this position; its namespace was deleted"
	}
	return fmt.Sprintf("the log does not contain this position; it is in epoch %s at offset %d", e.Epoch, e.Head)
}

// TooManyTopicsError says that a pattern matches more topics than can be served at once.
type TooManyTopicsError struct{ Limit int }

func (e *TooManyTopicsError) Error() string {
	return fmt.Sprintf("the pattern matches more than %d topics", e.Limit)
}
