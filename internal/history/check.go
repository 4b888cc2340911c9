package history

import (
	"fmt"
	"slices"

	"github.com/runnelhq/runnel/internal/topic"
)

// maxListed is how many violations of one rule are listed.
const maxListed = 20

// check judges one namespace.
type check struct {
	r       *Recorder
	ns      *namespace
	lineage *lineage
	epochs  []int // opening by epoch number; -1: the log never had it

	cells    []map[uint64]*cell // by stretch, by offset
	sorted   [][]*cell          // the same, by offset
	outcomes map[uint64]uint8   // by content: the outcomes of its publishes, as bits
	unseen   map[uint32]uint64  // by topic: publishes of unknown outcome that nobody saw

	counts map[Rule]int
	found  []Violation
}

// cell is what is known about an offset of a stretch.
type cell struct {
	offset   uint64
	ident    uint64 // 0 until an acknowledgement says
	content  uint64
	time     int64
	expected uint64
	topic    uint32
	stretch  int32
	witness  int32 // subscriber that was first to tell of it; -1: the acknowledgement
	flags    uint8
}

func newCheck(r *Recorder, ns *namespace) *check {
	c := &check{r: r, ns: ns, outcomes: map[uint64]uint8{}, unseen: map[uint32]uint64{}, counts: map[Rule]int{}}
	byName := map[string]int{}
	for i, o := range ns.openings {
		byName[o.Epoch] = i
	}
	c.epochs = make([]int, len(r.epochNames))
	for n, name := range r.epochNames {
		i, ok := byName[name]
		if !ok {
			i = -1
		}
		c.epochs[n] = i
	}
	first := map[int]uint64{}
	for i := range ns.publishes {
		p := &ns.publishes[i]
		e := c.epochs[p.epoch]
		if p.outcome == Acked && p.flags&flagDuplicate == 0 && e >= 0 && p.offset > 0 && (first[e] == 0 || p.offset < first[e]) {
			first[e] = p.offset
		}
	}
	c.lineage = newLineage(slices.Clone(ns.openings), first)
	c.cells = make([]map[uint64]*cell, len(ns.openings))
	for i := range c.cells {
		c.cells[i] = map[uint64]*cell{}
	}
	return c
}

func (c *check) run() []Violation {
	c.gatherPublishes()
	for i := range c.ns.subscribers {
		c.gatherSubscriber(int32(i))
	}
	c.sort()
	c.checkCells()
	c.checkDuplicates()
	c.checkExpected()
	c.countUnseen()
	for _, s := range c.ns.subscribers {
		c.follow(s)
	}
	for _, rule := range slices.Sorted(keys(c.counts)) {
		if n := c.counts[rule]; n > maxListed {
			c.found = append(c.found, Violation{rule, fmt.Sprintf("%s: %d more", c.ns.name, n-maxListed)})
		}
	}
	return c.found
}

func keys(m map[Rule]int) func(func(Rule) bool) {
	return func(yield func(Rule) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (c *check) report(rule Rule, format string, args ...any) {
	if c.counts[rule]++; c.counts[rule] <= maxListed {
		c.found = append(c.found, Violation{rule, c.ns.name + ": " + fmt.Sprintf(format, args...)})
	}
}

func (c *check) topic(n uint32) topic.Name { return c.r.names[n] }

// place writes an offset of a stretch for the report.
func (c *check) place(stretch int, offset uint64) string {
	return fmt.Sprintf("%s:%d", c.ns.openings[stretch].Epoch, offset)
}

// who writes a witness for the report.
func (c *check) who(witness int32) string {
	if witness < 0 {
		return "its acknowledgement"
	}
	return "subscriber " + c.ns.subscribers[witness].name
}

// what writes an event's content for the report.
func (c *check) what(topic uint32, content uint64, time int64) string {
	i := slices.IndexFunc(c.ns.publishes, func(p publish) bool { return p.content == content })
	if i < 0 {
		return fmt.Sprintf("something unpublished on %s (time %d)", c.topic(topic), time)
	}
	return fmt.Sprintf("id %q on %s (time %d)", c.ns.publishes[i].id, c.topic(topic), time)
}
