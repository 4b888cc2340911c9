package load

import (
	"context"
	"sync/atomic"
)

// Window is a closed loop: the publisher keeps published x subscribers - delivered at most window x subscribers. Publishing
// belongs to one goroutine; Delivered may be called by all.
type Window struct {
	size, subscribers int64
	published         int64
	delivered         atomic.Int64
	need              atomic.Int64 // what the publisher waits for
	wake              chan struct{}
}

// NewWindow returns a closed loop of that many events per subscriber.
func NewWindow(size, subscribers int) *Window {
	return &Window{size: int64(size), subscribers: int64(subscribers), wake: make(chan struct{}, 1)}
}

// Delivered notes that events have come to subscribers.
func (w *Window) Delivered(n int) {
	if d := w.delivered.Add(int64(n)); d >= w.need.Load() {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Room waits until the loop allows events to be published, and takes all that it allows, at most most.
func (w *Window) Room(ctx context.Context, most int) (int, error) {
	for {
		// Also what one event more would need.
		w.need.Store((w.published + 1 - w.size) * w.subscribers)
		if n := w.delivered.Load()/w.subscribers + w.size - w.published; n > 0 {
			n = min(n, int64(most))
			w.published += n
			return int(n), nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
