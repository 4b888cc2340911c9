package session

import (
	"errors"
	"fmt"
)

// Why a session ends by itself.
var (
	// ErrSilent: the client owed a request and sent none.
	ErrSilent = errors.New("no request came for too long")
	// ErrReopened: the log was closed or reopened under the session; the client's position says whether it may go on.
	ErrReopened = errors.New("the log was reopened")
	// ErrDuplicateID: the subscription id is in use.
	ErrDuplicateID = errors.New("a subscription with this id exists")
	// ErrUnknownID: there is no subscription with this id.
	ErrUnknownID = errors.New("there is no subscription with this id")
	// ErrTooMany: the session has as many subscriptions as it may have.
	ErrTooMany = errors.New("the session has too many subscriptions")
	// ErrFinished: the client has ended its side, and everything that was there was sent.
	ErrFinished = errors.New("the session is complete")
	// ErrEnded: the session is over.
	ErrEnded = errors.New("the session is over")
)

// SlowConsumerError ends a session whose client did not keep up: under policy DISCONNECT, or because its transport took
// nothing for too long. The position is where the client may resume.
type SlowConsumerError struct {
	Subscription uint32
	Epoch        string
	Offset       uint64
	Reason       string
}

func (e *SlowConsumerError) Error() string {
	return fmt.Sprintf("subscription %d at %s:%d: %s", e.Subscription, e.Epoch, e.Offset, e.Reason)
}
