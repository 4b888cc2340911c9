package server

import (
	"context"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The collector waits while many sessions begin and the heap is small, and only then.
func TestTuneCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const own = 150
		var sessions, live, percent atomic.Int64
		sessions.Store(10_000)
		percent.Store(own)
		var set []int
		c := &collector{
			sessions: sessions.Load, heap: func() (int64, int64) { return live.Load(), live.Load() / 4 }, room: 1000,
			own: own, set: func(p int) {
				set = append(set, p)
				percent.Store(int64(p))
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.run(ctx)
		}()
		time.Sleep(growthEvery / 2) // between its looks
		for _, step := range []struct {
			what   string
			grow   int64 // per look
			looks  int
			live   int64
			expect int64
		}{
			{"nobody comes", 0, 60, 40, own},
			{"some come", 9, 20, 40, own},
			{"many come", 150, 10, 40, 1920}, // 40 and 19.2 times 50 are 1,000
			{"it has run", 150, 10, 200, 320},
			{"calm for a while", 0, 29, 200, 320},
			{"calm for long", 0, 2, 200, own},
			{"many come and the heap is large", 200, 5, 400, own},
			{"it has run", 200, 1, 200, 320},
			{"they leave", -200, 20, 200, 320},
			{"the heap has grown", 0, 1, 900, own},
			{"the heap is too large", 500, 1, 5000, own},
			{"fewer than one in a hundred", 15, 40, 40, own},
			{"many come again", 500, 1, 40, 1920},
		} {
			live.Store(step.live)
			for range step.looks {
				sessions.Add(step.grow)
				time.Sleep(growthEvery)
			}
			if p := percent.Load(); p != step.expect {
				t.Errorf("%s: %d %%, want %d", step.what, p, step.expect)
			}
		}
		cancel()
		<-ended
		if want := []int{1920, 320, own, 320, own, 1920, own, 1920, own}; !slices.Equal(set, want) {
			t.Errorf("set %v, want %v", set, want)
		}
	})
}

// What is asked of the runtime is there, and is of the order of a heap.
func TestHeap(t *testing.T) {
	runtime.GC()
	if live, roots := heap(); live < 64<<10 || live > 1<<40 || roots < 4<<10 || roots > live {
		t.Errorf("%d and %d bytes", live, roots)
	}
}
