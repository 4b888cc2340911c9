package history

import (
	"fmt"
	"math/rand/v2"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// bug is what the model does wrong, once.
type bug string

// model is a correct log with subscribers, made of nothing but slices. It takes random steps and records them as a test
// would; with a bug planted it goes wrong at the first opportunity.
type model struct {
	rng *rand.Rand
	rec *Recorder
	bug bug
	hit bool // the bug had its opportunity

	level   runnelv1.Durability
	log     []stored // offsets from 1; what a crash loses is cut off the end
	safe    int      // events that survive a power loss
	oldest  uint64
	trimmed uint64 // the highest that oldest ever was
	epochs  []string
	heads   []uint64
	now     int64
	nextID  int
	retries []Publish // attempts that may be tried again
	readers []*reader
}

type stored struct {
	topic, id string
	payload   []byte
	time      int64
}

type policy int

const (
	catchUp policy = iota
	dropOldest
	conflate
)

type reader struct {
	sub     *Subscriber
	pattern topic.Pattern
	policy  policy
	pos     Position
	online  bool
	start   uint64
	recent  uint64 // newest offset delivered since the start
}

const space = "n"

func newModel(seed uint64, b bug) *model {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), rec: New(), bug: b, oldest: 1, now: 1000}
	m.level = runnelv1.Durability_DURABILITY_DISK
	if m.rng.IntN(2) == 0 {
		m.level = runnelv1.Durability_DURABILITY_OS
	}
	m.rec.Namespace(space, Rules{Durability: m.level})
	m.open(runnelv1.Durability_DURABILITY_UNSPECIFIED)
	for i, s := range []string{"n.>", "n.t0", "n.*", "n.t1", "n.>", "n.>"} {
		p, err := topic.ParsePattern(s)
		if err != nil {
			panic(err)
		}
		r := &reader{sub: m.rec.Subscriber(fmt.Sprintf("s%d", i), p), pattern: p, policy: policy(max(0, i-3))}
		m.readers = append(m.readers, r)
		m.subscribe(r)
	}
	return m
}

func (m *model) head() uint64 { return uint64(len(m.log)) }

func (m *model) epoch() string { return m.epochs[len(m.epochs)-1] }

// plant reports whether the bug strikes here.
func (m *model) plant(b bug) bool {
	if m.bug != b || m.hit {
		return false
	}
	m.hit = true
	return true
}

func (m *model) run(steps int) []Violation {
	for range steps {
		switch n := m.rng.IntN(100); {
		case n < 45:
			m.publish()
		case n < 47:
			m.crash()
		case n < 48:
			m.trim()
		default:
			m.step(m.readers[m.rng.IntN(len(m.readers))])
		}
	}
	for _, r := range m.readers {
		if !r.online {
			m.resume(r)
		}
		if tail := m.undelivered(r); len(tail) > 0 && m.plant("tail missing") {
			r.sub.Complete(m.head())
			continue
		}
		m.read(r, 1<<30)
		r.sub.Complete(m.head())
	}
	return m.rec.Check()
}

func (m *model) publish() {
	p := Publish{Topic: fmt.Sprintf("n.t%d", m.rng.IntN(3)), ID: fmt.Sprint("id", m.nextID), Outcome: Acked}
	p.Payload = fmt.Append(nil, "payload ", m.nextID)
	m.nextID++
	retry := len(m.retries) > 0 && m.rng.IntN(10) == 0
	if retry {
		p = m.retries[m.rng.IntN(len(m.retries))]
		p.Outcome = Acked
	}
	p.Epoch, p.Duplicate, p.Conditional = m.epoch(), false, false
	if first := m.find(p); first > 0 {
		m.again(p, first)
		return
	}
	switch {
	case m.rng.IntN(20) == 0:
		p.Outcome = Refused
		if !retry && m.readers[0].online && m.plant("refused but stored") {
			m.store(p)
			m.safe = len(m.log)
			m.read(m.readers[0], len(m.log))
		}
		m.rec.Publish(p)
		return
	case m.rng.IntN(10) == 0:
		p.Outcome = Unknown
		if m.rng.IntN(2) == 0 {
			m.store(p)
		}
		m.retries = append(m.retries, p)
		m.rec.Publish(p)
		return
	}
	m.accept(p)
}

// again answers a retry of the event at first.
func (m *model) again(p Publish, first uint64) {
	if m.acked(m.log[first-1]) && m.plant("dedup broken") {
		m.accept(p)
		return
	}
	p.Duplicate, p.Offset, p.Timestamp = true, first, m.log[first-1].time
	if first > 1 && m.acked(m.log[first-2]) && m.plant("duplicate names another offset") {
		p.Offset, p.Timestamp = first-1, m.log[first-2].time
	}
	m.commit()
	m.rec.Publish(p)
}

// commit makes the log safe if acknowledgements promise that.
func (m *model) commit() {
	if m.level == runnelv1.Durability_DURABILITY_DISK {
		m.safe = len(m.log)
	}
}

// accept stores an event and acknowledges it.
func (m *model) accept(p Publish) {
	if m.rng.IntN(5) == 0 {
		newest := m.newest(p.Topic)
		p.Conditional, p.Expected = true, newest
		if newest > 1 && m.plant("expectation ignored") {
			p.Expected--
		}
	}
	m.store(p)
	p.Offset, p.Timestamp = m.head(), m.now
	if m.head() > 1 && m.plant("offset given twice") {
		m.log = m.log[:len(m.log)-1]
		p.Offset--
	}
	m.commit()
	if m.rng.IntN(20) == 0 {
		m.retries = append(m.retries, p)
	}
	m.rec.Publish(p)
	if m.safe > 1 && m.level == runnelv1.Durability_DURABILITY_DISK && m.plant("ack before commit") {
		m.safe--
		m.log = m.log[:m.safe]
		m.crash()
	}
}

func (m *model) store(p Publish) {
	m.now += int64(m.rng.IntN(3))
	if len(m.log) > 0 && m.plant("timestamp falls") {
		m.now = m.log[len(m.log)-1].time - 1
	}
	m.log = append(m.log, stored{p.Topic, p.ID, p.Payload, m.now})
}

func (m *model) find(p Publish) uint64 {
	for i, e := range m.log {
		if e.topic == p.Topic && e.id == p.ID {
			return uint64(i + 1)
		}
	}
	return 0
}

// newest is the newest retained offset of a topic.
func (m *model) newest(name string) uint64 {
	for o := m.head(); o >= m.oldest; o-- {
		if m.log[o-1].topic == name {
			return o
		}
	}
	return 0
}

// crash ends the epoch. What an unfinished publish left unsafe was never seen by anybody where the level is DISK.
func (m *model) crash() {
	survives := runnelv1.Durability_DURABILITY_DISK
	if m.level == runnelv1.Durability_DURABILITY_OS && m.rng.IntN(2) == 0 {
		survives = runnelv1.Durability_DURABILITY_OS
	} else {
		m.log = m.log[:m.safe+m.rng.IntN(len(m.log)-m.safe+1)]
		m.oldest = min(m.oldest, m.head()+1)
	}
	m.open(survives)
	for _, r := range m.readers {
		if r.online {
			r.sub.Disconnected()
			r.online = false
		}
	}
}

func (m *model) open(survives runnelv1.Durability) {
	m.safe = len(m.log)
	m.epochs = append(m.epochs, fmt.Sprintf("%016x", len(m.epochs)+1))
	m.heads = append(m.heads, m.head())
	o := Opening{Epoch: m.epoch(), Head: m.head(), Survives: survives}
	if survives == runnelv1.Durability_DURABILITY_OS && m.rng.IntN(2) == 0 {
		o.Head = HeadUnknown // nothing was lost
	}
	m.rec.Opened(space, o)
}

func (m *model) trim() {
	if m.hit {
		return // or a needless GAP would turn out to be right after all
	}
	m.oldest += uint64(m.rng.IntN(int(m.head() + 2 - m.oldest)))
	m.trimmed = max(m.trimmed, m.oldest)
	m.rec.Trimmed(space, m.oldest)
}

// valid says what the log thinks of a position.
func (m *model) valid(p Position) bool {
	for i, e := range m.epochs {
		if e != p.Epoch {
			continue
		}
		for _, head := range m.heads[i+1:] {
			if p.Offset > head {
				return false
			}
		}
		return p.Offset <= m.head()
	}
	return false
}
