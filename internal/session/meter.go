package session

import (
	"sync/atomic"
	"time"
)

// Meter is what all sessions together have done and hold now. A nil Meter counts nothing. Safe for concurrent use.
type Meter struct {
	Sessions      atomic.Int64
	Subscriptions atomic.Int64
	Behind        atomic.Int64 // subscriptions that read the log

	Events    atomic.Uint64 // in frames
	Replayed  atomic.Uint64 // of Events, those that were read from the log
	Dropped   atomic.Uint64
	Conflated atomic.Uint64
	Gaps      atomic.Uint64
	Slow      atomic.Uint64 // sessions ended because they were too slow

	// Delay, if set, is called for each run of live events, under a lock, with the time since its oldest event was accepted, in whole
	// milliseconds as timestamps are. It must not block.
	Delay func(time.Duration)
}

func (m *Meter) sessions(n int64) {
	if m != nil {
		m.Sessions.Add(n)
	}
}

func (m *Meter) subscriptions(n int64) {
	if m != nil {
		m.Subscriptions.Add(n)
	}
}

func (m *Meter) behind(n int64) {
	if m != nil {
		m.Behind.Add(n)
	}
}

func (m *Meter) frame(f *Frame) {
	if m != nil {
		m.Events.Add(uint64(f.Events))
	}
}

// Slowed counts a session that has ended because its client was too slow, which the session itself cannot know.
func (m *Meter) Slowed() {
	if m != nil {
		m.Slow.Add(1)
	}
}

// tally is what became of a subscription's events.
type tally struct {
	delivered, dropped, conflated, gaps uint64
	delays                              delays
}

func (sub *subscription) countRun(events int, passed uint64, live bool, oldest int64, now time.Time) {
	sub.tally.delivered += uint64(events)
	sub.tally.conflated += passed
	m := sub.s.cfg.Meter
	if live && oldest > 0 {
		delay := max(now.UnixMilli()-oldest, 0)
		sub.tally.delays.add(delay)
		if m != nil && m.Delay != nil {
			m.Delay(time.Duration(delay) * time.Millisecond)
		}
	}
	if m == nil {
		return
	}
	if passed > 0 {
		m.Conflated.Add(passed)
	}
	if !live {
		m.Replayed.Add(uint64(events))
	}
}

func (sub *subscription) countDropped(n uint64) {
	sub.tally.dropped += n
	if m := sub.s.cfg.Meter; m != nil {
		m.Dropped.Add(n)
	}
}

func (sub *subscription) countGap() {
	sub.tally.gaps++
	if m := sub.s.cfg.Meter; m != nil {
		m.Gaps.Add(1)
	}
}

// delays is a coarse histogram: of runs by the delay of their oldest event, in milliseconds, by powers of two. It halves itself, so
// that it tells of what was lately rather than of what was ever.
type delays struct{ buckets [16]uint16 }

const delaysMost = 1 << 15

func (d *delays) add(ms int64) {
	i := 0
	for ; ms > 0 && i < len(d.buckets)-1; i++ {
		ms >>= 1
	}
	if d.buckets[i]++; d.buckets[i] >= delaysMost {
		for j := range d.buckets {
			d.buckets[j] /= 2
		}
	}
}

// quantile is the upper end of the bucket in which it lies, in milliseconds; 0 without data.
func (d *delays) quantile(q float64) float64 {
	total := 0
	for _, n := range d.buckets {
		total += int(n)
	}
	rank := q * float64(total)
	seen := 0
	for i, n := range d.buckets {
		if seen += int(n); total > 0 && float64(seen) >= rank {
			return float64(int(1) << i)
		}
	}
	return 0
}
