// Package ring holds the recent events of a log, for tails and readers that are near its head. A Ring is not safe for concurrent use: the log's
// lock guards it.
package ring

import (
	"slices"

	"github.com/runnelhq/runnel/internal/engine"
)

const (
	// EventCost is what an event costs beside its bytes.
	EventCost = 96
	// What is added joins the newest group up to these bounds, since thousands may read what came one by one.
	groupEvents = 256
	groupBytes  = 16 << 10
)

// Ring holds groups of events, as they were committed or came, oldest first. Groups may be missing, but never a part of one. The zero Ring is empty.
type Ring struct {
	groups []group
	bytes  int
}

// group is events whose offsets are dense.
type group struct {
	events []engine.Event
	bytes  int
}

func (g group) last() uint64 { return g.events[len(g.events)-1].Offset }

// Add adds events behind what is there, and keeps the slice. Each costs extra bytes beside EventCost and its own.
func (r *Ring) Add(events []engine.Event, extra int) {
	if len(events) == 0 {
		return
	}
	bytes := (EventCost + extra) * len(events)
	for i := range events {
		bytes += len(events[i].Wire)
	}
	r.bytes += bytes
	if n := len(r.groups); n > 0 {
		// Behind a page that somebody reads, never in it.
		if g := &r.groups[n-1]; g.last()+1 == events[0].Offset && len(g.events)+len(events) <= groupEvents && g.bytes+bytes <= groupBytes {
			g.events, g.bytes = append(g.events, events...), g.bytes+bytes
			return
		}
	}
	r.groups = append(r.groups, group{slices.Clip(events), bytes}) // what lies behind the slice is the caller's
}

// Bytes is what it holds.
func (r *Ring) Bytes() int { return r.bytes }

// Oldest returns the first and the last offset of the oldest group; false if there is none.
func (r *Ring) Oldest() (first, last uint64, ok bool) {
	if len(r.groups) == 0 {
		return 0, 0, false
	}
	return r.groups[0].events[0].Offset, r.groups[0].last(), true
}

// Drop takes the oldest group away. There must be one.
func (r *Ring) Drop() {
	r.bytes -= r.groups[0].bytes
	r.groups[0] = group{}
	r.groups = r.groups[1:]
}

// From returns events from offset next on, dense, as far as they are in one group; none if that one is not held. They are shared, and must not be changed.
func (r *Ring) From(next uint64) []engine.Event {
	i := r.find(next)
	if i == len(r.groups) || r.groups[i].events[0].Offset > next {
		return nil
	}
	return slices.Clip(r.groups[i].events[next-r.groups[i].events[0].Offset:])
}

// Above is the first offset that is held from next on; 0 if there is none.
func (r *Ring) Above(next uint64) uint64 {
	if i := r.find(next); i < len(r.groups) {
		return max(next, r.groups[i].events[0].Offset)
	}
	return 0
}

// find returns the number of the first group that ends at an offset or above.
func (r *Ring) find(offset uint64) int {
	i, _ := slices.BinarySearchFunc(r.groups, offset, func(g group, offset uint64) int {
		if g.last() < offset {
			return -1
		}
		return 1
	})
	return i
}
