package grpcapi

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
)

// A stream may have this much not yet committed; beyond it, it is not read.
const (
	maxPending      = 4 << 20
	maxPendingCount = 1024
	minPending      = maxPending / maxPendingCount // each event counts as at least this, which bounds their number
)

// pending is a publish that waits for its commit.
type pending struct {
	request uint64
	publish *runnelv1.PublishRequest
	weight  int64
}

// intake takes the publishes of one stream in order, and commits what has gathered while the commit before was under way. Its
// goroutine lives only while something waits.
type intake struct {
	flush  func([]pending) // called by one goroutine at a time, in order
	budget *budget.Budget

	room  *semaphore.Weighted
	group sync.WaitGroup

	mu      sync.Mutex
	waiting []pending
	running bool
	closed  bool
}

func newIntake(b *budget.Budget, flush func([]pending)) *intake {
	return &intake{flush: flush, budget: b, room: semaphore.NewWeighted(maxPending)}
}

// put waits for room, in the stream's window and in memory. It belongs to the goroutine that reads the stream.
func (in *intake) put(ctx context.Context, request uint64, r *runnelv1.PublishRequest) error {
	weight := min(max(int64(len(r.GetPayload())), minPending), maxPending)
	if err := in.room.Acquire(ctx, weight); err != nil {
		return err
	}
	if err := in.budget.Wait(ctx, budget.Publishes, weight); err != nil {
		in.room.Release(weight)
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		in.free(weight)
		return ErrDraining
	}
	in.waiting = append(in.waiting, pending{request, r, weight})
	if !in.running {
		in.running = true
		in.group.Go(in.run)
	}
	return nil
}

func (in *intake) run() {
	for {
		in.mu.Lock()
		batch := in.waiting
		in.waiting = nil
		if len(batch) == 0 {
			in.running = false
			in.mu.Unlock()
			return
		}
		in.mu.Unlock()
		in.flush(batch)
		var weight int64
		for _, p := range batch {
			weight += p.weight
		}
		in.free(weight)
	}
}

func (in *intake) free(weight int64) {
	in.budget.Give(budget.Publishes, weight)
	in.room.Release(weight)
}

// close takes nothing more and waits until everything taken is committed.
func (in *intake) close() {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	in.group.Wait()
}
