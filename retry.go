package runnel

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of the wait between attempts.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// retry waits between attempts: full jitter, that is a random time between 0 and a bound that doubles, so that clients cut at
// once do not come back at once. (After Brooker, "Exponential Backoff And Jitter", 2015.)
type retry struct{ bound time.Duration }

func (b *retry) reset() { b.bound = 0 }

func (b *retry) next(atLeast time.Duration) time.Duration {
	b.bound = min(max(2*b.bound, minBackoff), maxBackoff)
	return atLeast + rand.N(b.bound)
}

func (b *retry) wait(ctx context.Context, atLeast time.Duration) error {
	return sleep(ctx, b.next(atLeast))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
