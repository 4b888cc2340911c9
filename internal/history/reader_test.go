package history

import runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"

// The subscribers of the model.

const (
	gap       = runnelv1.NoticeKind_NOTICE_KIND_GAP
	dropped   = runnelv1.NoticeKind_NOTICE_KIND_DROPPED
	conflated = runnelv1.NoticeKind_NOTICE_KIND_CONFLATED
)

// visible is the newest offset that readers may see: where the level is DISK, nothing that is not yet safe.
func (m *model) visible() uint64 {
	if m.level == runnelv1.Durability_DURABILITY_DISK {
		return uint64(m.safe)
	}
	return m.head()
}

func (m *model) step(r *reader) {
	if !r.online {
		m.resume(r)
		return
	}
	switch n := m.rng.IntN(20); {
	case n == 0:
		r.sub.Disconnected()
		r.online = false
	case n == 1:
		m.bookmark(r)
	case n < 4 && r.policy == dropOldest:
		m.drop(r)
	case n < 4 && r.policy == conflate:
		m.conflate(r)
	default:
		m.read(r, m.rng.IntN(6))
	}
}

func (m *model) subscribe(r *reader) {
	if r.start = m.visible(); m.rng.IntN(2) == 0 {
		r.start = m.oldest - 1
	}
	r.start = min(r.start, m.visible())
	r.pos, r.online, r.recent = Position{m.epoch(), r.start}, true, 0
	r.sub.Subscribed(r.pos)
	if r.start >= m.oldest && m.log[r.start-1].topic == "n.t0" && r.pattern.Match(topicOf("n.t0")) && m.plant("event before the start") {
		m.event(r, r.start)
	}
}

func (m *model) resume(r *reader) {
	epoch := m.epoch()
	switch {
	case m.valid(r.pos) && r.pos.Epoch != epoch && m.plant("refused for no reason"):
		r.sub.EpochChanged(r.pos, epoch)
		m.subscribe(r)
		return
	case r.pos.Offset+1 >= m.trimmed && m.plant("gone for no reason"):
		r.sub.PositionGone(r.pos, epoch)
		m.subscribe(r)
		return
	case !m.valid(r.pos) && !m.plant("epoch ignored"):
		r.sub.EpochChanged(r.pos, epoch)
		m.subscribe(r)
		return
	case m.valid(r.pos) && r.pos.Offset+1 < m.oldest && m.rng.IntN(2) == 0:
		r.sub.PositionGone(r.pos, epoch)
		m.subscribe(r)
		return
	}
	r.sub.Resumed(r.pos, epoch)
	r.online, r.pos.Epoch = true, epoch
	if r.recent > 0 && r.recent <= m.head() && m.plant("duplicate after resume") {
		m.event(r, r.recent)
	}
	if next := m.undelivered(r); len(next) > 1 && m.plant("skips one at the seam") {
		r.pos.Offset = next[0]
		m.read(r, 1)
	}
}

// undelivered are the offsets that match and are still there behind the reader.
func (m *model) undelivered(r *reader) []uint64 {
	var list []uint64
	for o := max(r.pos.Offset+1, m.oldest); o <= m.visible(); o++ {
		if r.pattern.Match(topicOf(m.log[o-1].topic)) {
			list = append(list, o)
		}
	}
	return list
}

// catchGap tells of what was trimmed before the reader came by.
func (m *model) catchGap(r *reader) {
	if r.pos.Offset+1 >= m.oldest || m.oldest > m.head()+1 {
		return
	}
	if !m.trimmedMatching(r) || !m.plant("gap not told") {
		r.sub.Notice(gap, r.pos.Offset+1, m.oldest-1, 0)
	}
	r.pos.Offset = m.oldest - 1
}

func (m *model) trimmedMatching(r *reader) bool {
	for o := r.pos.Offset + 1; o < m.oldest; o++ {
		if e := m.log[o-1]; r.pattern.Match(topicOf(e.topic)) && m.acked(e) {
			return true
		}
	}
	return false
}

// acked reports whether the history knows an event: what nobody ever heard of cannot be missed.
func (m *model) acked(e stored) bool {
	for _, p := range m.rec.namespaces[space].publishes {
		if p.id == e.id && p.outcome == Acked && p.flags&flagDuplicate == 0 {
			return true
		}
	}
	return false
}

func (m *model) read(r *reader, most int) {
	m.catchGap(r)
	list := m.undelivered(r)
	list = list[:min(len(list), most)]
	if len(list) > 1 && m.acked(m.log[list[0]-1]) {
		switch {
		case m.plant("silent drop"):
			list = list[1:]
		case m.plant("reordered"):
			list[0], list[1] = list[1], list[0]
		}
	}
	for _, o := range list {
		m.event(r, o)
		r.pos.Offset = max(r.pos.Offset, o)
	}
	if o := r.pos.Offset + 1; o == m.visible()+1 && o <= m.head() && m.level == runnelv1.Durability_DURABILITY_DISK &&
		r.pattern.Match(topicOf(m.log[o-1].topic)) && m.plant("visible before commit") {
		m.event(r, o)
		m.log = m.log[:m.safe]
		m.crash()
	}
	if o := r.pos.Offset + 1; o <= m.visible() && !r.pattern.Match(topicOf(m.log[o-1].topic)) && m.plant("foreign topic") {
		m.event(r, o)
	}
}

func (m *model) event(r *reader, o uint64) {
	e := m.log[o-1]
	switch {
	case o > 1 && m.acked(e) && m.plant("payload swapped"):
		e.id, e.payload = m.log[o-2].id, m.log[o-2].payload
	case m.plant("payload damaged"):
		e.payload = []byte("damaged")
	}
	r.sub.Event(o, e.time, e.topic, e.id, e.payload)
	r.recent = o
}

func (m *model) bookmark(r *reader) {
	m.catchGap(r)
	next := m.undelivered(r)
	switch {
	case len(next) == 0:
		r.pos.Offset = max(r.pos.Offset, m.visible())
	case r.policy != conflate && m.acked(m.log[next[0]-1]) && m.plant("bookmark one ahead"):
		r.sub.Bookmark(Position{m.epoch(), next[0]})
		return
	default:
		r.pos.Offset = max(r.pos.Offset, next[0]-1)
	}
	r.sub.Bookmark(r.pos)
}

func (m *model) drop(r *reader) {
	m.catchGap(r)
	list := m.undelivered(r)
	if len(list) == 0 {
		return
	}
	n := 1 + m.rng.IntN(len(list))
	from, to, count := r.pos.Offset+1, list[n-1], uint64(n)
	switch {
	case m.plant("DROPPED count wrong"):
		count += 1000
	case m.plant("gap for no reason"):
		r.sub.Notice(gap, max(from, m.oldest), to, 0)
		r.pos.Offset = to
		return
	}
	r.sub.Notice(dropped, from, to, count)
	r.pos.Offset = to
	if m.plant("event behind its notice") {
		m.event(r, to)
	}
}

// conflate delivers some of what waits and tells of the rest, before or after.
func (m *model) conflate(r *reader) {
	m.catchGap(r)
	list := m.undelivered(r)
	if len(list) < 2 {
		return
	}
	keep := map[uint64]bool{list[len(list)-1]: true}
	for _, o := range list {
		if m.rng.IntN(3) == 0 {
			keep[o] = true
		}
	}
	count := uint64(len(list) - len(keep))
	if count == 0 {
		m.read(r, len(list))
		return
	}
	told := count
	silent := false
	for _, o := range list {
		silent = silent || !keep[o] && m.acked(m.log[o-1])
	}
	switch {
	case m.plant("CONFLATED count wrong"):
		told += 1000
	case silent && m.plant("CONFLATED not told"):
		told = 0
	}
	first := m.rng.IntN(2) == 0
	tell := func() {
		if told > 0 {
			r.sub.Notice(conflated, list[0], list[len(list)-1], told)
		}
	}
	if first {
		tell()
	}
	for _, o := range list {
		if keep[o] {
			m.event(r, o)
		}
	}
	r.pos.Offset = list[len(list)-1]
	if !first {
		tell()
	}
}
