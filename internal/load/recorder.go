package load

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Delays from 1 us to 10 minutes, with three significant digits.
const (
	lowest  = 1
	highest = int64(10 * time.Minute / time.Microsecond)
	digits  = 3
)

// Recorder collects delays from any number of goroutines. Each should take a Shard of its own, or share it with few.
type Recorder struct {
	mu     sync.Mutex
	shards []*Shard
}

// Shard is a part of a Recorder.
type Shard struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

// Shard adds a part.
func (r *Recorder) Shard() *Shard {
	s := &Shard{h: hdrhistogram.New(lowest, highest, digits)}
	r.mu.Lock()
	r.shards = append(r.shards, s)
	r.mu.Unlock()
	return s
}

// Record notes delays. One below a microsecond counts as one, one above ten minutes as ten.
func (s *Shard) Record(delays ...time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Events that come together have mostly waited equally long.
	for len(delays) > 0 {
		us, n := delays[0].Microseconds(), 1
		for n < len(delays) && delays[n].Microseconds() == us {
			n++
		}
		if err := s.h.RecordValues(min(max(us, lowest), highest), int64(n)); err != nil {
			panic(err) // it is inside the bounds
		}
		delays = delays[n:]
	}
}

// Reset forgets everything recorded so far: the end of a warm-up.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.shards {
		s.mu.Lock()
		s.h.Reset()
		s.mu.Unlock()
	}
}

// Fill sets the result's mean and percentiles, in milliseconds.
func (r *Recorder) Fill(to *Result) {
	all := hdrhistogram.New(lowest, highest, digits)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.shards {
		s.mu.Lock()
		all.Merge(s.h)
		s.mu.Unlock()
	}
	if all.TotalCount() == 0 {
		return
	}
	ms := func(us int64) *float64 { v := float64(us) / 1000; return &v }
	to.P50, to.P99, to.Max = ms(all.ValueAtPercentile(50)), ms(all.ValueAtPercentile(99)), ms(all.Max())
	mean := all.Mean() / 1000
	to.Mean = &mean
}

// only forgets all shards but one.
func (r *Recorder) only(s *Shard) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards = []*Shard{s}
}
