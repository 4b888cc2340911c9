package pace

import (
	"context"
	"errors"
	"testing"
	"time"
)

// However late the publisher is, every event is due when it should have been.
func TestPacerSkipsNothing(t *testing.T) {
	start := time.Now()
	now := start
	p := &Pacer{start: start, rate: 1000, now: func() time.Time { return now }, sleep: func(d time.Duration) { now = now.Add(d) }}
	for i := range 100 {
		if i == 50 {
			now = now.Add(20 * time.Millisecond) // a stall
		}
		due, err := p.Next(t.Context())
		if want := start.Add(time.Duration(i) * time.Millisecond); err != nil || !due.Equal(want) {
			t.Fatalf("event %d is due %v after the start: %v", i, due.Sub(start), err)
		}
		if now.Before(due) {
			t.Fatalf("event %d comes %v early", i, due.Sub(now))
		}
	}
	if now.Sub(start) != 99*time.Millisecond {
		t.Errorf("the last came after %v", now.Sub(start))
	}
}

func TestPacerEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := New(0.001)
	if _, err := p.Next(ctx); err != nil { // the first is due at once
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	nap(time.Microsecond)
}
