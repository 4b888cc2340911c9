package server

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// What sessions that begin bring stays, so the collector goes through a heap that grows again each time it has doubled: for a tenth of a second with
// 5,000 sessions, in which processors that are busy with those that come have nothing for the others.
const (
	growthEvery  = time.Second      // sessions are looked at
	growth       = 100              // part of them that is many in that time
	leastGrowth  = 10               // fewer are never many
	calmAfter    = 30 * time.Second // without growth
	relaxedShare = 8                // part of the usable memory that the heap may have meanwhile
	mostRelaxed  = 1 << 30          // and not more: new memory has a price too
)

// TuneCollector lets Go's garbage collector wait while many sessions begin, as when another server is gone, until ctx ends: until the heap has an
// eighth of the usable memory, at most 1 GiB, or until there was no such growth for 30 s. The collector is the whole process's, so it is for the program
// to call this; runnel serve does if GOGC is not in its environment. To be called once, for one of all servers of a process.
func (s *Server) TuneCollector(ctx context.Context) {
	read := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(read)
	if own := read[0].Value.Uint64(); own < math.MaxUint64 { // which is off
		set := func(percent int) { debug.SetGCPercent(percent) }
		(&collector{own: int(own), sessions: s.meter.Sessions.Load, heap: heap, room: min(usableMemory()/relaxedShare, mostRelaxed), set: set}).run(ctx)
	}
}

type collector struct {
	own      int // per cent that the heap may grow by (GOGC)
	sessions func() int64
	heap     func() (live, roots int64) // bytes, when the collector last ran
	room     int64                      // bytes
	set      func(percent int)
}

func (c *collector) run(ctx context.Context) {
	ticker := time.NewTicker(growthEvery)
	defer ticker.Stop()
	now := c.own
	defer func() {
		if now != c.own {
			c.set(c.own)
		}
	}()
	var until time.Time
	for last := c.sessions(); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		n := c.sessions()
		if n-last >= max(last/growth, leastGrowth) {
			until = time.Now().Add(calmAfter)
		}
		last = n
		want := c.own
		if time.Now().Before(until) {
			live, roots := c.heap()
			want = max(c.own, int(100*(c.room-live)/max(live+roots, 1)))
		}
		if want != now {
			c.set(want)
			now = want
		}
	}
}

// heap is what was in use when the collector last ran, and what else it counts in when it decides how much may come to that.
func heap() (live, roots int64) {
	read := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(read)
	return int64(read[0].Value.Uint64()), int64(read[1].Value.Uint64() + read[2].Value.Uint64())
}
