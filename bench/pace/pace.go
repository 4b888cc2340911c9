//go:build linux

// Package pace says when events are due, to within some tens of microseconds. The timers of Go are late by up to a millisecond, which
// is more than most of the delays that are compared, and would be counted as the systems' own.
package pace

import (
	"context"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// Pacer is an open loop: events are due at fixed times, whatever the system does. None is skipped: one that is late is due at once,
// and is counted from when it was due. It belongs to one goroutine.
type Pacer struct {
	start time.Time
	rate  float64
	sent  int64
	now   func() time.Time
	sleep func(time.Duration)
}

// New begins now, with so many events per second.
func New(rate float64) *Pacer {
	return &Pacer{start: time.Now(), rate: rate, now: time.Now, sleep: nap}
}

// coarse is how much of a wait is left to Go's timers, which can be interrupted: all but this.
const coarse = 3 * time.Millisecond

// Next waits until an event is due and returns when that was, or ctx's error.
func (p *Pacer) Next(ctx context.Context) (time.Time, error) {
	seconds := float64(p.sent) / p.rate
	due := p.start.Add(time.Duration(math.Round(seconds * float64(time.Second))))
	p.sent++
	if left := due.Sub(p.now()); left > coarse {
		t := time.NewTimer(left - coarse)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return due, ctx.Err()
		}
	}
	if left := due.Sub(p.now()); left > 0 {
		p.sleep(left)
	}
	return due, ctx.Err()
}

// nap sleeps in the kernel.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&t, &t) == unix.EINTR {
		continue // t is what is left
	}
}
