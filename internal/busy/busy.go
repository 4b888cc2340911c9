// Package busy finds the busiest topics: how many events and bytes per second each takes, in bounded memory however many topics clients
// name. It is the Space-Saving algorithm with weights (Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k
// Elements in Data Streams", 2005), whose counts decay exponentially: forward (Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay",
// 2009), so that old counts need not be touched.
//
// A Counter is many small summaries side by side, as the sets of a processor's cache are. A topic belongs to one by its hash, whose seed no
// client knows, so that topics rarely wait for each other, and finding one, or the least, is a look at a few neighbours in memory.
//
// What it guarantees, where an event weighs its bytes and eventWeight, weights decay, and less than idle is nothing:
//
//   - What is counted of a topic is not more than the truth, and with what may be missed it is not less.
//   - A topic is known if it has more than a ways-th of the weight of all topics that belong to its summary.
//
// It has no clock: times come from who calls. Safe for concurrent use.
package busy

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/topic"
)

const (
	// Memory is how long an event is remembered: each has lost all but 1/e of its weight after that time. Its mean age is then that of
	// the events in a window of twice the time.
	Memory = 5 * time.Second

	// eventWeight is what an event weighs beside its bytes: about what handling it costs, in bytes. Many small events and a few large ones
	// are both busy.
	eventWeight = 128

	// ways is how many topics a summary holds. More find the busiest better and cost more.
	ways = 16

	// era is the time after which weights are scaled down. Within it they grow by e^100, far from what a float64 holds.
	era = 100 * Memory

	// idle is the events per second below which a topic is not listed, and forgotten when weights are scaled down.
	idle = 0.01

	// exact is the share of a figure that may be missed and is not worth telling.
	exact = 0.001
)

// Counter counts events by topic. Its memory is bounded by New: about 60 bytes and a name for each topic it can hold.
type Counter struct {
	began time.Time
	seed  maphash.Seed
	sets  []set // a power of two
}

// set is one summary. A slot without a name is free; it weighs 0, so that it is the first to be taken. Cores hand it to each other, so that a
// topic's count should touch few cache lines: one up to the weights, one of them, and one slot.
type set struct {
	mu      sync.Mutex
	era     int64         // weights are those at its beginning
	tags    [ways]uint16  // parts of the topics' hashes: most of those that differ need not be compared
	_       [16]byte      // to the end of a cache line
	weights [ways]float64 // at least the topics'
	slots   [ways]slot
}

type slot struct {
	name   topic.Name
	missed float64 // of its weight at most so much is not the topic's, but of those that had the slot before
	events float64 // since it has the slot
	bytes  float64
}

// New returns a Counter that holds at least so many topics. It begins before all times that it is given later.
func New(topics int, began time.Time) *Counter {
	n := 1
	for n*ways < topics {
		n *= 2
	}
	return &Counter{began: began, seed: maphash.MakeSeed(), sets: make([]set, n)}
}

// moment is a time as weights have it: scale is how many times as large the weight of an event is as at the beginning of the era.
type moment struct {
	era   int64
	scale float64
}

func (c *Counter) moment(t time.Time) moment {
	since := max(t.Sub(c.began), 0)
	return moment{int64(since / era), math.Exp(float64(since%era) / float64(Memory))}
}

// Batch counts events that were accepted at the same time. It is for one goroutine. Done must be called at its end.
type Batch struct {
	c             *Counter
	at            moment
	name          topic.Name // of those that are not counted yet
	events, bytes int
}

// At begins a batch.
func (c *Counter) At(t time.Time) Batch { return Batch{c: c, at: c.moment(t)} }

// Add counts an event of so many bytes.
func (b *Batch) Add(n topic.Name, bytes int) {
	// Events that follow each other on a topic, as in bulk they do, are counted at once.
	if n != b.name {
		b.Done()
		b.name = n
	}
	b.events++
	b.bytes += bytes
}

// Done counts what is left.
func (b *Batch) Done() {
	if b.events > 0 {
		h := maphash.String(b.c.seed, b.name.String())
		b.c.sets[h>>16&uint64(len(b.c.sets)-1)].add(uint16(h), b.name, b.at, float64(b.events), float64(b.bytes))
	}
	b.events, b.bytes = 0, 0
}

func (s *set) add(tag uint16, n topic.Name, at moment, events, bytes float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	scale := at.scale
	if at.era != s.era {
		if at.era > s.era {
			s.scaleLocked(at.era)
		} else { // counted after events that came later
			scale *= between(at.era, s.era)
		}
	}
	i := s.slotLocked(tag, n)
	events, bytes = events*scale, bytes*scale
	s.weights[i] += eventWeight*events + bytes
	s.slots[i].events += events
	s.slots[i].bytes += bytes
}

// slotLocked is the slot of a topic, which takes that of the least if it has none.
func (s *set) slotLocked(tag uint16, n topic.Name) int {
	for i := range s.tags {
		if s.tags[i] == tag && s.slots[i].name == n {
			return i
		}
	}
	least := 0
	for i, w := range s.weights {
		if w < s.weights[least] {
			least = i
		}
	}
	s.tags[least] = tag
	s.slots[least] = slot{name: n, missed: s.weights[least]}
	return least
}

// between is what a weight of one era must be multiplied by in another: less than 1 if that is later.
func between(from, to int64) float64 {
	return math.Exp(-float64(to-from) * float64(era/Memory))
}

// scaleLocked begins an era, and forgets who has been idle since the last.
func (s *set) scaleLocked(now int64) {
	f := between(s.era, now)
	s.era = now
	for i := range s.slots {
		o := &s.slots[i]
		if s.weights[i] *= f; s.weights[i] < eventWeight*idle*Memory.Seconds() {
			s.tags[i], s.weights[i], *o = 0, 0, slot{}
			continue
		}
		o.missed *= f
		o.events *= f
		o.bytes *= f
	}
}

// Topic is how busy a topic is, per second: means in which an event's weight decays with Memory.
type Topic struct {
	Name   topic.Name
	Events float64 // what was counted: not more than the truth
	Bytes  float64
	// MissedEvents and MissedBytes are the most that was not counted, because the topic was not known yet; not both can be missed in
	// full. Both are 0 if they are less than a thousandth.
	MissedEvents float64
	MissedBytes  float64
}

// Order says what busy means.
type Order int

const (
	ByEvents Order = iota // events per second
	ByBytes               // bytes per second
)

// List returns the busiest topics that match, at most limit, busiest first, and how many match of those that are known and not idle. A
// match that is nil matches all; it is called under a lock, and must not block.
func (c *Counter) List(t time.Time, match func(topic.Name) bool, by Order, limit int) (list []Topic, matched int) {
	now := c.moment(t)
	for i := range c.sets {
		list = c.sets[i].list(list, now, match)
	}
	slices.SortFunc(list, func(a, b Topic) int {
		x, y := a.Events, b.Events
		if by == ByBytes {
			x, y = a.Bytes, b.Bytes
		}
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(a.Name.String(), b.Name.String()))
	})
	return list[:min(limit, len(list))], len(list)
}

func (s *set) list(list []Topic, now moment, match func(topic.Name) bool) []Topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.era > s.era {
		s.scaleLocked(now.era)
	}
	// From weights at the beginning of the set's era to rates now: a constant rate has weighed, over all the past, Memory times as much.
	f := between(s.era, now.era) / now.scale / Memory.Seconds()
	for i := range s.slots {
		o := &s.slots[i]
		if o.events*f < idle || match != nil && !match(o.name) {
			continue
		}
		t := Topic{Name: o.name, Events: o.events * f, Bytes: o.bytes * f, MissedEvents: o.missed * f / eventWeight, MissedBytes: o.missed * f}
		if t.MissedEvents < exact*t.Events && t.MissedBytes < exact*t.Bytes {
			t.MissedEvents, t.MissedBytes = 0, 0
		}
		list = append(list, t)
	}
	return list
}
