package history

import (
	"cmp"
	"maps"
	"slices"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// gatherPublishes learns from the acknowledgements which event is where.
func (c *check) gatherPublishes() {
	for i := range c.ns.publishes {
		p := &c.ns.publishes[i]
		c.outcomes[p.content] |= 1 << p.outcome
		if p.outcome != Acked || p.offset == 0 {
			continue
		}
		epoch := c.epochs[p.epoch]
		if epoch < 0 {
			c.report(RuleEpoch, "id %q was acknowledged under epoch %q, which the log never had", p.id, c.r.epochNames[p.epoch])
			continue
		}
		level := p.level
		switch promised := uint8(c.ns.rules.Durability); {
		case level == 0:
			level = promised
		case level < promised:
			c.report(RuleDurable, "id %q was acknowledged at %s, the namespace promises %s", p.id, runnelv1.Durability(level), c.ns.rules.Durability)
		}
		if m := c.lineage.lost(epoch, p.offset, level); m >= 0 {
			c.report(RuleDurable, "id %q was acknowledged at offset %d under epoch %s, and epoch %s came back with head %d",
				p.id, p.offset, c.ns.openings[epoch].Epoch, c.ns.openings[m].Epoch, c.lineage.openings[m].Head)
		}
		if p.flags&flagDuplicate != 0 {
			continue
		}
		cl := c.claim(epoch, -1, cell{offset: p.offset, content: p.content, time: p.time, topic: p.topic})
		if cl.ident == 0 {
			cl.ident = p.ident
		}
		if p.flags&flagConditional != 0 {
			cl.flags, cl.expected = cl.flags|flagConditional, p.expected
		}
	}
}

// gatherSubscriber learns from what a subscriber saw.
func (c *check) gatherSubscriber(n int32) {
	epoch := -1
	for i, st := range c.ns.subscribers[n].steps {
		switch st.kind {
		case stepSubscribed, stepResumed:
			epoch = c.epochs[st.log]
		case stepEvent:
			if c.outcomes[st.b]&(1<<Acked|1<<Unknown) == 0 {
				c.invented(n, st)
			}
			if epoch < 0 || st.offset == 0 {
				continue
			}
			c.claim(epoch, n, cell{offset: st.offset, content: st.b, time: int64(st.a), topic: st.number})
			if m := c.lineage.lost(epoch, st.offset, uint8(c.ns.rules.Durability)); m >= 0 {
				c.report(RuleDurable, "subscriber %s saw offset %d under epoch %s (step %d), and epoch %s came back with head %d",
					c.ns.subscribers[n].name, st.offset, c.ns.openings[epoch].Epoch, i, c.ns.openings[m].Epoch, c.lineage.openings[m].Head)
			}
		}
	}
}

func (c *check) invented(n int32, st step) {
	how := "was published by nobody"
	if c.outcomes[st.b] != 0 {
		how = "was refused"
	}
	c.report(RuleInvented, "subscriber %s got offset %d, %s, which %s", c.ns.subscribers[n].name, st.offset, c.what(st.number, st.b, int64(st.a)), how)
}

// claim compares a sighting under an epoch with what is known of the offset.
func (c *check) claim(epoch int, witness int32, said cell) *cell {
	said.stretch, said.witness = int32(c.lineage.stretch(epoch, said.offset)), witness
	cells := c.cells[said.stretch]
	known := cells[said.offset]
	switch {
	case known == nil:
		cells[said.offset] = &said
		return &said
	case known.content != said.content || known.time != said.time || known.topic != said.topic:
		c.report(RuleContent, "offset %s is %s for %s, and %s for %s", c.place(int(said.stretch), said.offset),
			c.what(known.topic, known.content, known.time), c.who(known.witness), c.what(said.topic, said.content, said.time), c.who(witness))
	}
	return known
}

func (c *check) sort() {
	c.sorted = make([][]*cell, len(c.cells))
	for i, m := range c.cells {
		c.sorted[i] = slices.SortedFunc(maps.Values(m), func(a, b *cell) int { return cmp.Compare(a.offset, b.offset) })
	}
	idents := make(map[uint64]uint64, len(c.ns.publishes))
	for i := range c.ns.publishes {
		idents[c.ns.publishes[i].content] = c.ns.publishes[i].ident
	}
	for _, list := range c.sorted {
		for _, cl := range list {
			if cl.ident == 0 {
				cl.ident = idents[cl.content]
			}
		}
	}
}

// remembers reports whether the id of an event must still be known when another is stored.
func (c *check) remembers(first, then *cell) bool {
	kept := c.ns.rules.IDsKept
	return kept == 0 || then.offset <= first.offset+kept
}

// checkCells looks at neighbours in the log, and at equal ids.
func (c *check) checkCells() {
	byIdent := map[uint64]*cell{}
	for k, list := range c.sorted {
		var before *cell
		if k > 0 && len(list) > 0 {
			before = c.newestBelow(k-1, c.lineage.limit(k-1, k))
		}
		for _, cl := range list {
			if before != nil && cl.time < before.time {
				c.report(RuleTime, "offset %s has time %d, and offset %s has %d", c.place(int(before.stretch), before.offset), before.time,
					c.place(k, cl.offset), cl.time)
			}
			before = cl
			if cl.ident == 0 {
				continue
			}
			if first := byIdent[cl.ident]; first != nil && c.sees(cl, first) && c.within(first.time, cl.time) && c.remembers(first, cl) {
				c.report(RuleDedup, "%s is stored at offsets %s and %s", c.what(cl.topic, cl.content, cl.time),
					c.place(int(first.stretch), first.offset), c.place(k, cl.offset))
			}
			byIdent[cl.ident] = cl
		}
	}
}

// newestBelow is the newest known event at or below an offset as epoch j sees the log.
func (c *check) newestBelow(j int, offset uint64) *cell {
	for ; j >= 0; j-- {
		if list := c.sorted[j]; len(list) > 0 {
			if n, ok := slices.BinarySearchFunc(list, offset, byOffset); ok {
				return list[n]
			} else if n > 0 {
				return list[n-1]
			}
		}
		offset = min(offset, c.lineage.openings[j].Head)
	}
	return nil
}

func byOffset(cl *cell, offset uint64) int { return cmp.Compare(cl.offset, offset) }

// sees reports whether an earlier event was still there in the stretch of a later one.
func (c *check) sees(later, earlier *cell) bool {
	return earlier.offset <= c.lineage.limit(int(earlier.stretch), int(later.stretch))
}

func (c *check) within(first, second int64) bool {
	w := c.ns.rules.DedupWindow.Milliseconds()
	return w == 0 || second-first <= w
}

// checkDuplicates compares acknowledgements as duplicate with the event they name.
func (c *check) checkDuplicates() {
	for i := range c.ns.publishes {
		p := &c.ns.publishes[i]
		epoch := c.epochs[p.epoch]
		if p.outcome != Acked || p.flags&flagDuplicate == 0 || p.offset == 0 || epoch < 0 {
			continue
		}
		k := c.lineage.stretch(epoch, p.offset)
		switch cl := c.cells[k][p.offset]; {
		case cl == nil: // nobody saw the first
		case cl.ident != p.ident:
			c.report(RuleDedup, "id %q on %s was acknowledged as the duplicate of offset %s, which is %s", p.id, c.topic(p.topic),
				c.place(k, p.offset), c.what(cl.topic, cl.content, cl.time))
		case p.time == 0 && c.ns.rules.TimesEnd:
		case cl.time != p.time:
			c.report(RuleDedup, "id %q on %s, a duplicate of offset %s, was acknowledged with time %d instead of %d", p.id, c.topic(p.topic),
				c.place(k, p.offset), p.time, cl.time)
		}
	}
}

// checkExpected looks for what came before each conditional event on its topic.
func (c *check) checkExpected() {
	byTopic := map[uint32][]*cell{}
	for _, list := range c.sorted {
		for _, cl := range list {
			before := byTopic[cl.topic]
			byTopic[cl.topic] = append(before, cl)
			if cl.flags&flagConditional == 0 {
				continue
			}
			var newest uint64
			for i := len(before) - 1; i >= 0 && newest == 0; i-- {
				if c.sees(cl, before[i]) {
					newest = before[i].offset
				}
			}
			if !c.rightly(cl, newest) {
				c.report(RuleExpected, "offset %s on %s was appended behind %d, and expected %d", c.place(int(cl.stretch), cl.offset),
					c.topic(cl.topic), newest, cl.expected)
			}
		}
	}
}

// rightly reports whether a conditional event may lie behind newest, the newest event before it on its topic that anybody knows.
func (c *check) rightly(cl *cell, newest uint64) bool {
	switch {
	case cl.expected == newest:
		return true
	case cl.expected < newest:
		return cl.expected == 0 && newest < c.ns.oldest // trimmed
	case cl.expected >= cl.offset:
		return false
	}
	// It may have been behind an event that nobody saw, but not behind one of another topic.
	_, known := c.cells[c.lineage.stretch(int(cl.stretch), cl.expected)][cl.expected]
	return !known
}

// countUnseen counts the publishes that may or may not lie in the log where nobody looked.
func (c *check) countUnseen() {
	seen := map[uint64]bool{}
	for _, list := range c.sorted {
		for _, cl := range list {
			seen[cl.content] = true
		}
	}
	for i := range c.ns.publishes {
		if p := &c.ns.publishes[i]; p.outcome == Unknown && !seen[p.content] {
			c.unseen[p.topic]++
		}
	}
}
