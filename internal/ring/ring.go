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
	// A page takes groups together up to these bounds.
	pageEvents = 1024
	pageBytes  = 256 << 10
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

// Add adds a group, behind what is there. Each event costs extra bytes beside EventCost and its own.
func (r *Ring) Add(events []engine.Event, extra int) {
	if len(events) == 0 {
		return
	}
	bytes := (EventCost + extra) * len(events)
	for i := range events {
		bytes += len(events[i].Wire)
	}
	r.groups = append(r.groups, group{events, bytes})
	r.bytes += bytes
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

// From returns the events from offset next on, a page of them; none if that one is not held. They are shared, and must not be changed.
func (r *Ring) From(next uint64) []engine.Event {
	i := r.find(next)
	if i == len(r.groups) || r.groups[i].events[0].Offset > next {
		return nil
	}
	bytes := r.groups[i].bytes
	events := r.groups[i].events[next-r.groups[i].events[0].Offset:]
	events = slices.Clip(events) // never appended to in place
	for _, g := range r.groups[i+1:] {
		bytes += g.bytes
		follows := g.events[0].Offset == events[len(events)-1].Offset+1
		if !follows || len(events)+len(g.events) > pageEvents || bytes > pageBytes {
			break
		}
		events = append(events, g.events...)
	}
	return events
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
