//go:build linux

package receive

import (
	"encoding/binary"
	"time"

	"github.com/runnelhq/runnel/internal/load"
)

// sinkShards is how many histograms the sinks share: one each would be memory, one for all a lock that they fight for.
const sinkShards = 8

// Sink is what a full client, which reads its connection itself, tells of its events. It counts as one of the Receiver's connections
// and belongs to one goroutine. It implements wire.Events.
type Sink struct {
	r     *Receiver
	shard *load.Shard
	every int
	n     int
	ready bool
}

// Sink returns a new one, which records the delay of every so manieth event: reading the clock for each would be a part of what is
// measured. It must be called by whoever calls Add.
func (r *Receiver) Sink(every int) *Sink {
	r.sinks++
	return &Sink{r: r, shard: r.shards[r.sinks%sinkShards], every: every}
}

// Ready implements wire.Events.
func (s *Sink) Ready() {
	if !s.ready {
		s.ready = true
		s.r.oneReady()
	}
}

// Event implements wire.Events.
func (s *Sink) Event(payload []byte) {
	if s.n++; s.n >= s.every && len(payload) >= 8 {
		s.n = 0
		s.shard.Record(time.Since(began) - time.Duration(binary.LittleEndian.Uint64(payload)))
	}
	s.r.Delivered.Add(1)
	if s.r.Window != nil {
		s.r.Window.Delivered(1)
	}
}

// Noticed implements wire.Events.
func (s *Sink) Noticed(n int) {
	s.r.Noticed.Add(int64(n))
	if s.r.Window != nil {
		s.r.Window.Delivered(n)
	}
}

// Received counts bytes on the wire.
func (s *Sink) Received(n int) { s.r.Bytes.Add(int64(n)) }

// Fail ends the Receiver's Run with an error.
func (s *Sink) Fail(err error) {
	s.r.failed.CompareAndSwap(nil, &err)
	s.r.Stop()
}
