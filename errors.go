package runnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Reasons an *Error may carry. The whole table is in docs/errors.md.
const (
	ReasonUnknownNamespace = "UNKNOWN_NAMESPACE"
	ReasonPositionGone     = "POSITION_GONE"
	ReasonEpochChanged     = "EPOCH_CHANGED"
	ReasonOffsetConflict   = "OFFSET_CONFLICT"
	ReasonTooLarge         = "TOO_LARGE"
	ReasonSlowConsumer     = "SLOW_CONSUMER"
	ReasonStorageFull      = "STORAGE_FULL"
	ReasonStorageFailed    = "STORAGE_FAILED"
	ReasonUnauthenticated  = "UNAUTHENTICATED"
	ReasonTokenExpired     = "TOKEN_EXPIRED"
	ReasonPermissionDenied = "PERMISSION_DENIED"
	ReasonLimitReached     = "LIMIT_REACHED"

	reasonDraining = "DRAINING"
)

// ErrClosed is returned by whatever was closed by the application.
var ErrClosed = errors.New("runnel: closed")

// Error is every error that came from a server, or that the client inferred.
type Error struct {
	Code    codes.Code
	Reason  string // why, for programs: a constant of this package, or another of the table
	Message string // why, for people: one line
	// RetryAfter is how long to wait before the same call may succeed; 0 if the server does not expect it to.
	RetryAfter time.Duration
	// FromServer says that the server said so; otherwise the client inferred it, for example from a broken connection.
	FromServer bool
	// Facts is what the server says in numbers, for example oldest and newest for POSITION_GONE.
	Facts map[string]string
	// Notice is set where the subscription goes on: events were dropped, or are gone.
	Notice *Notice
	// Summary is set where a bulk upload failed.
	Summary *Summary

	at string // the address of the server that refused a stream
}

// Notice says what a subscription did not get, or that its pace changed.
type Notice struct {
	Kind     string // GAP, DROPPED, CONFLATED, BEHIND, CAUGHT_UP
	From, To uint64 // offsets, inclusive
	Count    uint64 // events; 0 where the number is not known
	Reason   string
}

// loses says that events will never come which nothing newer stands for.
func (n *Notice) loses() bool { return n.Kind == "GAP" || n.Kind == "DROPPED" }

func (e *Error) Error() string {
	if n := e.Notice; n != nil {
		return fmt.Sprintf("%s: offsets %d to %d, %d events: %s", n.Kind, n.From, n.To, n.Count, n.Reason)
	}
	if e.Reason == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Reason, e.Message)
}

// Terminal says that the subscription that yielded the error is over.
func (e *Error) Terminal() bool { return e.Notice == nil }

// GRPCStatus lets status.FromError and status.Code work on an *Error.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// fromStatus reads what the server said.
func fromStatus(s *status.Status) *Error {
	e := &Error{Code: s.Code(), Message: s.Message()}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Facts, e.FromServer = d.GetReason(), d.GetMetadata(), true
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		case *runnelv1.PublishSummary:
			e.Summary = summaryOf(d)
		}
	}
	return e
}

// wrap turns an error of a call into an *Error; the context's own errors stay.
func wrap(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return &Error{Code: codes.Unavailable, Message: "the server closed the stream"}
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return fromStatus(status.Convert(err))
}

// passing says that the same call may succeed later: the server says so, or it was not the server that spoke.
func passing(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	if e.FromServer {
		return e.RetryAfter > 0
	}
	switch e.Code {
	case codes.Unavailable, codes.Unknown, codes.Internal, codes.Canceled, codes.Aborted, codes.DeadlineExceeded:
		return true
	}
	return false
}

// retryAfter is how long the server asked to wait.
func retryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
