package grpcapi

import (
	"context"
	"time"

	"google.golang.org/grpc/tap"
)

// grpc-go waits for a call's first message for ever, with the call's place among its connection's streams. First ends a call whose
// message does not come: the context that it makes is the call's, so that the wait ends too; the client sees CANCELLED.

type firstKey struct{}

// first is a call that waits for its first message.
type first struct{ timer *time.Timer }

// First is a tap (grpc.InTapHandle) that gives each call so much time for its first message, or until its handler runs without one.
func First(within time.Duration) tap.ServerInHandle {
	return func(ctx context.Context, _ *tap.Info) (context.Context, error) {
		ctx, cancel := context.WithCancel(ctx)
		f := &first{time.AfterFunc(within, cancel)}
		return context.WithValue(ctx, firstKey{}, f), nil
	}
}

// came stops the clock.
func came(ctx context.Context) {
	if f, ok := ctx.Value(firstKey{}).(*first); ok {
		f.timer.Stop()
	}
}
