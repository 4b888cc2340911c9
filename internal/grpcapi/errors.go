package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/limit"
	"github.com/runnelhq/runnel/internal/session"
)

const domain = "runnel"

// ErrDraining answers whoever comes, or still is there, while the server stops.
var ErrDraining = errors.New("the server is stopping")

// row is one line of the table of errors, which docs/errors.md shows to users. Nothing else makes statuses.
type row struct {
	match  func(error) bool
	code   codes.Code
	reason string
	retry  time.Duration // RetryInfo is present if above 0
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

var table = []row{
	{as[*broker.InvalidError], codes.InvalidArgument, "INVALID_FIELD", 0},
	{as[*broker.PolicyError], codes.InvalidArgument, "POLICY_NOT_ALLOWED", 0},
	{as[*broker.TooLargeError], codes.ResourceExhausted, "TOO_LARGE", 0},
	{is(engine.ErrUnknownNamespace), codes.NotFound, "UNKNOWN_NAMESPACE", 0},
	{is(engine.ErrTooManyNamespaces), codes.ResourceExhausted, "TOO_MANY_NAMESPACES", 0},
	{is(engine.ErrNoHistory), codes.InvalidArgument, "NO_HISTORY", 0},
	{as[*engine.ConflictError], codes.Aborted, "OFFSET_CONFLICT", 0},
	{as[*engine.PositionGoneError], codes.OutOfRange, "POSITION_GONE", 0},
	{as[*engine.EpochChangedError], codes.FailedPrecondition, "EPOCH_CHANGED", 0},
	{as[*engine.TooManyTopicsError], codes.InvalidArgument, "TOO_MANY_TOPICS", 0},
	{is(engine.ErrStorageFull), codes.ResourceExhausted, "STORAGE_FULL", 5 * time.Second},
	{is(engine.ErrStorageFailed), codes.Unavailable, "STORAGE_FAILED", time.Second},
	{is(engine.ErrUnavailable), codes.Unavailable, "STORAGE_UNAVAILABLE", time.Second},
	{is(engine.ErrCorrupt), codes.DataLoss, "DATA_DAMAGED", 0},
	{is(engine.ErrClosed), codes.Unavailable, "DRAINING", time.Second},
	{is(engine.ErrDeleted), codes.Unavailable, "NAMESPACE_DELETED", 100 * time.Millisecond},
	{is(engine.ErrSkipped), codes.Aborted, "SKIPPED", 0},
	{as[*session.SlowConsumerError], codes.ResourceExhausted, "SLOW_CONSUMER", 0},
	{is(budget.ErrExhausted), codes.ResourceExhausted, "MEMORY_EXHAUSTED", time.Second},
	{is(errUnauthenticated), codes.Unauthenticated, "UNAUTHENTICATED", 0},
	{is(errExpired), codes.Unauthenticated, "TOKEN_EXPIRED", 0},
	{as[*broker.ForbiddenError], codes.PermissionDenied, "PERMISSION_DENIED", 0},
	{as[*limit.Error], codes.ResourceExhausted, "LIMIT_REACHED", 0},
	{is(session.ErrSilent), codes.Unavailable, "SESSION_SILENT", 100 * time.Millisecond},
	{is(session.ErrReopened), codes.Unavailable, "STORAGE_REOPENED", 100 * time.Millisecond},
	{is(session.ErrDuplicateID), codes.InvalidArgument, "DUPLICATE_SUBSCRIPTION", 0},
	{is(session.ErrUnknownID), codes.NotFound, "UNKNOWN_SUBSCRIPTION", 0},
	{is(session.ErrTooMany), codes.ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", 0},
	{is(errAged), codes.Unavailable, "STREAM_AGE", time.Millisecond},
	{is(errDisconnected), codes.Unavailable, "DISCONNECTED", time.Second},
	{is(ErrDraining), codes.Unavailable, "DRAINING", time.Second},
	{is(errAuthOff), codes.FailedPrecondition, "AUTHENTICATION_OFF", 0},
	{is(context.Canceled), codes.Canceled, "CANCELED", 0},
	{is(context.DeadlineExceeded), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", 0},
}

// leastRetry is the shortest time after which a client that hit a limit is asked back.
const leastRetry = time.Millisecond

// internalError is all that clients learn of faults of our own.
const internalError = "internal error"

var errAuthOff = errors.New("this server does not authenticate, so there is no token to refresh")

// statusOf translates an error. What is not in the table is the server's own fault and is not shown to the client.
func statusOf(err error) *status.Status {
	if s, ok := status.FromError(err); ok {
		return s
	}
	for _, r := range table {
		if !r.match(err) {
			continue
		}
		details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: r.reason, Domain: domain, Metadata: facts(err)}}
		retry := r.retry
		if limited := (*limit.Error)(nil); errors.As(err, &limited) {
			retry = max(limited.Retry, leastRetry)
		}
		if retry > 0 {
			details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
		}
		if v := new(broker.InvalidError); errors.As(err, &v) {
			details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: v.Field, Description: v.Reason},
			}})
		}
		return with(status.New(r.code, err.Error()), details...)
	}
	return with(status.New(codes.Internal, internalError), &errdetails.ErrorInfo{Reason: "INTERNAL", Domain: domain})
}

// reasonOf is the table's word for an error.
func reasonOf(err error) string {
	for _, r := range table {
		if r.match(err) {
			return r.reason
		}
	}
	if errors.Is(err, session.ErrFinished) {
		return "FINISHED"
	}
	return "INTERNAL"
}

func with(s *status.Status, details ...protoadapt.MessageV1) *status.Status {
	if d, err := s.WithDetails(details...); err == nil {
		return d
	}
	return s
}

// facts is what a program may want to know of an error.
func facts(err error) map[string]string {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	var (
		conflict *engine.ConflictError
		gone     *engine.PositionGoneError
		changed  *engine.EpochChangedError
		large    *broker.TooLargeError
		slow     *session.SlowConsumerError
	)
	switch {
	case errors.As(err, &conflict):
		return map[string]string{"current": number(conflict.Current)}
	case errors.As(err, &gone):
		return map[string]string{"oldest": number(gone.Oldest), "newest": number(gone.Newest)}
	case errors.As(err, &changed):
		if changed.Epoch == "" { // deleted: there is no epoch
			return nil
		}
		return map[string]string{"epoch": changed.Epoch, "head": number(changed.Head)}
	case errors.As(err, &large):
		return map[string]string{"limit": strconv.Itoa(large.Limit)}
	case errors.As(err, &slow):
		return map[string]string{
			"subscription": fmt.Sprint(slow.Subscription), "epoch": slow.Epoch, "offset": number(slow.Offset),
			"position": slow.Epoch + ":" + number(slow.Offset),
		}
	}
	return nil
}
