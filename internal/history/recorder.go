package history

import (
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/runnelhq/runnel/internal/topic"
)

// Recorder collects a history. Its methods are safe for concurrent use; a Subscriber belongs to one goroutine at a time.
type Recorder struct {
	seed maphash.Seed

	mu         sync.Mutex
	topics     map[string]uint32
	names      []topic.Name // by topic number
	epochs     map[string]uint32
	epochNames []string
	namespaces map[string]*namespace
}

// namespace is what was recorded about one log.
type namespace struct {
	name        string
	rules       Rules
	openings    []Opening
	oldest      uint64 // retention may have removed everything below
	publishes   []publish
	subscribers []*Subscriber
}

// publish is a Publish without its bytes.
type publish struct {
	id       string
	ident    uint64 // of topic and id
	content  uint64 // of topic, id and payload
	offset   uint64
	time     int64
	expected uint64
	topic    uint32
	epoch    uint32
	outcome  Outcome
	level    uint8
	flags    uint8
}

const (
	flagConditional = 1 << iota
	flagDuplicate
)

// New returns an empty Recorder.
func New() *Recorder {
	return &Recorder{
		seed: maphash.MakeSeed(), topics: map[string]uint32{}, epochs: map[string]uint32{}, namespaces: map[string]*namespace{},
	}
}

// Namespace sets what a namespace promises.
func (r *Recorder) Namespace(name string, rules Rules) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.namespaceLocked(name).rules = rules
}

// Opened records that the namespace's log goes on under a new epoch. Call it in the order of the openings, before anything is
// recorded under the epoch.
func (r *Recorder) Opened(name string, o Opening) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ns := r.namespaceLocked(name)
	ns.openings = append(ns.openings, o)
}

// Trimmed records that retention has removed everything below oldest, or may have: GAP and POSITION_GONE are then right
// about those offsets.
func (r *Recorder) Trimmed(name string, oldest uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ns := r.namespaceLocked(name)
	ns.oldest = max(ns.oldest, oldest)
}

// Publish records an attempt once its outcome is known, or known to stay unknown.
func (r *Recorder) Publish(p Publish) {
	ident, content := r.digest(p.Topic, p.ID, p.Payload)
	rec := publish{
		id: p.ID, ident: ident, content: content, offset: p.Offset, time: p.Timestamp, expected: p.Expected,
		outcome: p.Outcome, level: uint8(p.Durability),
	}
	if p.Conditional {
		rec.flags |= flagConditional
	}
	if p.Duplicate {
		rec.flags |= flagDuplicate
	}
	name, _, _ := strings.Cut(p.Topic, ".")
	r.mu.Lock()
	defer r.mu.Unlock()
	rec.topic, rec.epoch = r.topicLocked(p.Topic), r.epochLocked(p.Epoch)
	ns := r.namespaceLocked(name)
	ns.publishes = append(ns.publishes, rec)
}

// Subscriber adds a subscriber under a name for the report, which follows pattern.
func (r *Recorder) Subscriber(name string, pattern topic.Pattern) *Subscriber {
	s := &Subscriber{r: r, name: name, pattern: pattern, topics: map[string]uint32{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	ns := r.namespaceLocked(pattern.Namespace())
	ns.subscribers = append(ns.subscribers, s)
	return s
}

// Check judges what was recorded. Nothing may be recorded meanwhile. Of each rule and namespace at most a few violations
// are listed, and how many there are.
func (r *Recorder) Check() []Violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Violation
	for _, name := range slices.Sorted(maps.Keys(r.namespaces)) {
		all = append(all, newCheck(r, r.namespaces[name]).run()...)
	}
	return all
}

func (r *Recorder) namespaceLocked(name string) *namespace {
	ns := r.namespaces[name]
	if ns == nil {
		ns = &namespace{name: name}
		r.namespaces[name] = ns
	}
	return ns
}

func (r *Recorder) topicLocked(name string) uint32 {
	n, ok := r.topics[name]
	if !ok {
		n = uint32(len(r.names))
		r.topics[name] = n
		r.names = append(r.names, topic.Stored(name))
	}
	return n
}

func (r *Recorder) epochLocked(epoch string) uint32 {
	n, ok := r.epochs[epoch]
	if !ok {
		n = uint32(len(r.epochNames))
		r.epochs[epoch] = n
		r.epochNames = append(r.epochNames, epoch)
	}
	return n
}

// digest hashes what an event is: who it is, and all of it.
func (r *Recorder) digest(topic, id string, payload []byte) (ident, content uint64) {
	var h maphash.Hash
	h.SetSeed(r.seed)
	h.WriteString(topic)
	h.WriteByte(0)
	h.WriteString(id)
	ident = h.Sum64()
	h.WriteByte(0)
	h.Write(payload)
	return ident, h.Sum64()
}
