package load

import (
	"context"
	"time"
)

// Pacer is an open loop: events are due at fixed times, whatever the system does. One that is late is published at once and
// counted from when it was due, so that a stall shows in every event that it has delayed. It belongs to one goroutine.
type Pacer struct {
	start time.Time
	rate  float64
	sent  int64
}

// NewPacer begins now, with so many events per second.
func NewPacer(rate float64) *Pacer { return &Pacer{start: time.Now(), rate: rate} }

// Next waits until an event is due and returns when that was.
func (p *Pacer) Next(ctx context.Context) (time.Time, error) {
	due := p.start.Add(time.Duration(float64(p.sent) / p.rate * float64(time.Second)))
	p.sent++
	wait := time.Until(due)
	if wait <= 0 {
		return due, ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return due, nil
	case <-ctx.Done():
		return due, ctx.Err()
	}
}
