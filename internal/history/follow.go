package history

import (
	"slices"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// walk goes through one subscriber's steps. pos is the offset up to which everything that matches was delivered or covered.
type walk struct {
	c *check
	s *Subscriber

	matches map[uint32]bool
	begun   bool
	epoch   int // of the log that is followed; -1: one it never had
	from    int // step of the last Subscribed
	start   uint64
	pos     uint64
	marked  uint64 // newest bookmark
	noticed uint64 // end of the newest GAP or DROPPED

	conflates bool     // a CONFLATED notice came at some time: it may explain what was passed over
	skipped   []uint64 // what it has yet to explain
	owed      owed
}

// owed is what a CONFLATED notice counted and the subscriber has yet to pass over.
type owed struct {
	from, to, count, slack uint64
}

func (c *check) follow(s *Subscriber) {
	w := &walk{c: c, s: s, matches: map[uint32]bool{}, epoch: -1}
	w.conflates = slices.ContainsFunc(s.steps, func(st step) bool { return st.is(runnelv1.NoticeKind_NOTICE_KIND_CONFLATED) })
	for i, st := range s.steps {
		switch st.kind {
		case stepSubscribed:
			w.settle()
			w.subscribed(i, st)
		case stepResumed:
			w.resumed(i, st)
		case stepEpochChanged, stepPositionGone:
			w.refused(i, st)
		}
		if w.epoch < 0 || !w.begun {
			continue
		}
		switch st.kind {
		case stepEvent:
			w.event(i, st)
		case stepNotice:
			w.notice(i, st)
		case stepBookmark:
			w.bookmark(i, st)
		case stepComplete:
			w.pass(i, st.offset, RuleMissing)
			w.settle()
		}
	}
	w.settle()
}

func (w *walk) report(i int, rule Rule, format string, args ...any) {
	w.c.report(rule, "subscriber %s, step %d: "+format, append([]any{w.s.name, i}, args...)...)
}

// known looks an epoch up.
func (w *walk) known(i int, number uint32) int {
	e := w.c.epochs[number]
	if e < 0 {
		w.report(i, RuleEpoch, "epoch %q is named, which the log never had", w.c.r.epochNames[number])
	}
	return e
}

func (w *walk) subscribed(i int, st step) {
	w.begun, w.from, w.epoch = true, i, w.known(i, st.log)
	w.start, w.pos, w.marked, w.noticed = st.offset, st.offset, 0, 0
}

func (w *walk) resumed(i int, st step) {
	before := w.epoch
	e := w.known(i, st.number)
	if w.epoch = w.known(i, st.log); e < 0 || w.epoch < 0 {
		return
	}
	if e > w.epoch {
		w.report(i, RuleEpoch, "position %s is accepted in the earlier epoch %s", w.c.place(e, st.offset), w.c.ns.openings[w.epoch].Epoch)
		return
	}
	if limit := w.c.lineage.limit(e, w.epoch); st.offset > limit {
		w.report(i, RuleEpoch, "position %s is accepted in epoch %s, though of that stretch only offsets up to %d were left",
			w.c.place(e, st.offset), w.c.ns.openings[w.epoch].Epoch, limit)
	}
	if !w.begun || before < 0 || before > w.epoch || w.pos > w.c.lineage.limit(before, w.epoch) {
		// It did not go on, but began anew.
		w.settle()
		w.begun, w.from, w.start, w.pos, w.marked, w.noticed = true, i, st.offset, st.offset, 0, 0
		return
	}
	w.pass(i, st.offset, RuleMissing)
}

// refused judges a refusal, as far as the history knows the position: through an earlier epoch, or because the subscriber
// itself had been there.
func (w *walk) refused(i int, st step) {
	e, now := w.known(i, st.number), w.known(i, st.log)
	if e < 0 || now < 0 {
		return
	}
	p := w.c.place(e, st.offset)
	if st.kind == stepPositionGone {
		if st.offset+1 >= w.c.ns.oldest {
			w.report(i, RuleRefusal, "%s is refused as POSITION_GONE, though nothing from offset %d on was trimmed", p, w.c.ns.oldest)
		}
		return
	}
	if e > now || w.c.lineage.forgot(e, now) {
		return
	}
	limit := w.c.lineage.limit(e, now)
	if e == now {
		limit = w.c.lineage.openings[e].Head
		if w.begun && w.epoch == now {
			limit = max(limit, w.pos)
		}
	}
	if st.offset <= limit {
		w.report(i, RuleRefusal, "%s is refused as EPOCH_CHANGED in epoch %s, though nothing up to offset %d was lost",
			p, w.c.ns.openings[now].Epoch, limit)
	}
}

func (w *walk) event(i int, st step) {
	if st.offset == 0 {
		return
	}
	if !w.match(st.number) {
		w.report(i, RulePattern, "topic %s does not match %s", w.c.topic(st.number), w.s.pattern)
	}
	if st.offset > w.pos {
		w.pass(i, st.offset-1, RuleMissing)
		w.pos = st.offset
		return
	}
	switch {
	case w.delivered(i, st.offset):
		w.report(i, RuleDuplicate, "offset %d came before", st.offset)
	case st.offset <= w.start:
		w.report(i, RuleStart, "offset %d comes, though it began behind %d", st.offset, w.start)
	case st.offset <= w.marked:
		w.report(i, RuleBookmark, "offset %d comes behind bookmark %d", st.offset, w.marked)
	case st.offset <= w.noticed:
		w.report(i, RuleNotice, "offset %d comes behind a notice that it is lost up to %d", st.offset, w.noticed)
	default:
		w.report(i, RuleOrder, "offset %d comes behind %d", st.offset, w.pos)
	}
}

// delivered reports whether an offset came earlier since the start.
func (w *walk) delivered(i int, offset uint64) bool {
	return slices.ContainsFunc(w.s.steps[w.from:i], func(st step) bool { return st.kind == stepEvent && st.offset == offset })
}

func (w *walk) bookmark(i int, st step) {
	switch e := w.known(i, st.number); {
	case e < 0:
	case e > w.epoch || st.offset > w.c.lineage.limit(e, w.epoch):
		w.report(i, RuleEpoch, "bookmark %s names a stretch that the log in epoch %s does not have", w.c.place(e, st.offset), w.c.ns.openings[w.epoch].Epoch)
	default:
		w.pass(i, st.offset, RuleBookmark)
		w.marked = max(w.marked, st.offset)
		w.settleUpTo(st.offset)
	}
}

func (w *walk) notice(i int, st step) {
	from, to, count := st.offset, st.a, st.b
	if from == 0 && to == 0 {
		return // the namespace keeps nothing
	}
	kind := runnelv1.NoticeKind(st.notice)
	switch kind {
	case runnelv1.NoticeKind_NOTICE_KIND_CONFLATED:
		w.conflated(i, from, to, count)
		return
	case runnelv1.NoticeKind_NOTICE_KIND_GAP:
		if to >= w.c.ns.oldest {
			w.report(i, RuleNotice, "GAP up to %d, though nothing from offset %d on was trimmed", to, w.c.ns.oldest)
		}
	case runnelv1.NoticeKind_NOTICE_KIND_DROPPED:
	default:
		return
	}
	if from > to || from <= w.pos {
		w.report(i, RuleNotice, "%s from %d to %d, though it already was at %d", kind, from, to, w.pos)
	}
	w.pass(i, from-1, RuleMissing)
	n := uint64(0)
	w.between(w.pos, to, func(uint64) { n++ })
	if slack := w.slack(); count > 0 && kind == runnelv1.NoticeKind_NOTICE_KIND_DROPPED && (count < n || count > n+slack) {
		w.report(i, RuleNotice, "DROPPED from %d to %d counts %d events, there are %d", from, to, count, n)
	}
	w.pos, w.noticed = max(w.pos, to), max(w.noticed, to)
}

// conflated covers what was passed over in the range, and what will be.
func (w *walk) conflated(i int, from, to, count uint64) {
	w.collect()
	before := len(w.skipped)
	w.skipped = slices.DeleteFunc(w.skipped, func(o uint64) bool { return from <= o && o <= to })
	n := uint64(before - len(w.skipped))
	slack := w.slack()
	switch {
	case count == 0:
	case n > count:
		w.report(i, RuleNotice, "CONFLATED from %d to %d counts %d events, there are %d", from, to, count, n)
	case to <= w.pos && count > n+slack:
		w.report(i, RuleNotice, "CONFLATED from %d to %d counts %d events, there are %d", from, to, count, n)
	case to > w.pos:
		w.owed = owed{from: w.pos + 1, to: to, count: w.owed.count + count - n, slack: slack}
	}
}

// pass moves pos to an offset. What matches on the way was passed over.
func (w *walk) pass(i int, to uint64, rule Rule) {
	w.between(w.pos, to, func(offset uint64) {
		switch o := &w.owed; {
		case o.from <= offset && offset <= o.to && o.count > 0:
			o.count--
		case w.conflates:
			w.skipped = append(w.skipped, offset)
		default:
			w.report(i, rule, "it is at %d without offset %d", to, offset)
		}
	})
	w.pos = max(w.pos, to)
}

// settle ends the patience with CONFLATED notices.
func (w *walk) settle() {
	w.settleUpTo(w.pos)
	w.collect()
	w.owed = owed{}
}

// collect judges what a CONFLATED notice counted ahead, once its range was passed.
func (w *walk) collect() {
	if w.owed.to > w.pos {
		return
	}
	if w.owed.count > w.owed.slack {
		w.report(len(w.s.steps), RuleNotice, "CONFLATED up to %d counts %d events too many", w.owed.to, w.owed.count)
	}
	w.owed = owed{}
}

func (w *walk) settleUpTo(pos uint64) {
	for _, offset := range w.skipped {
		if offset <= pos {
			w.report(len(w.s.steps), RuleMissing, "offset %d never came and no notice says so", offset)
		}
	}
	w.skipped = slices.DeleteFunc(w.skipped, func(o uint64) bool { return o <= pos })
}

// between calls f with the offsets in (after, to] of known events that match, as the followed epoch sees the log.
func (w *walk) between(after, to uint64, f func(offset uint64)) {
	if to <= after {
		return
	}
	l := w.c.lineage
	for k := l.stretch(w.epoch, after+1); k <= w.epoch; k++ {
		low, high := after, min(to, l.limit(k, w.epoch))
		if k > 0 {
			low = max(low, l.openings[k].Head)
		}
		list := w.c.sorted[k]
		n, _ := slices.BinarySearchFunc(list, low+1, byOffset)
		for ; n < len(list) && list[n].offset <= high; n++ {
			if w.match(list[n].topic) {
				f(list[n].offset)
			}
		}
	}
}

func (w *walk) match(topic uint32) bool {
	m, ok := w.matches[topic]
	if !ok {
		m = w.s.pattern.Match(w.c.topic(topic))
		w.matches[topic] = m
	}
	return m
}

// slack is how many events that match may exist without anybody knowing.
func (w *walk) slack() uint64 {
	n := uint64(0)
	for topic, count := range w.c.unseen {
		if w.match(topic) {
			n += count
		}
	}
	return n
}
