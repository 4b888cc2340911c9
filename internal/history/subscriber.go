package history

import (
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// Subscriber records what one subscriber's application got, in order. Its methods are for one goroutine at a time.
type Subscriber struct {
	r       *Recorder
	name    string
	pattern topic.Pattern
	topics  map[string]uint32 // what this subscriber knows of the Recorder's
	steps   []step
}

type stepKind uint8

const (
	stepSubscribed stepKind = iota
	stepEvent
	stepNotice
	stepBookmark
	stepDisconnected
	stepResumed
	stepEpochChanged
	stepPositionGone
	stepComplete
)

// step is one thing that happened. What the fields hold depends on the kind; events are what there are many of.
type step struct {
	kind   stepKind
	notice uint8  // a runnelv1.NoticeKind
	number uint32 // event: topic; others: epoch of the position
	log    uint32 // event: unused; others: epoch of the log
	offset uint64 // notice: from
	a      uint64 // event: timestamp; notice: to
	b      uint64 // event: content; notice: count
}

func (st step) is(kind runnelv1.NoticeKind) bool {
	return st.kind == stepNotice && runnelv1.NoticeKind(st.notice) == kind
}

// Subscribed records a start that the log accepted: p as the server confirmed it, with the log's current epoch.
func (s *Subscriber) Subscribed(p Position) {
	s.position(stepSubscribed, p, p.Epoch)
}

// Resumed records that the log, now in epoch, accepted to go on behind from.
func (s *Subscriber) Resumed(from Position, epoch string) {
	s.position(stepResumed, from, epoch)
}

// Event records an event handed to the application.
func (s *Subscriber) Event(offset uint64, timestamp int64, topic, id string, payload []byte) {
	number, ok := s.topics[topic]
	if !ok {
		s.r.mu.Lock()
		number = s.r.topicLocked(topic)
		s.r.mu.Unlock()
		s.topics[topic] = number
	}
	_, content := s.r.digest(topic, id, payload)
	s.steps = append(s.steps, step{kind: stepEvent, number: number, offset: offset, a: uint64(timestamp), b: content})
}

// Notice records a notice: GAP, DROPPED or CONFLATED; others are ignored. A count of 0 is not checked.
func (s *Subscriber) Notice(kind runnelv1.NoticeKind, from, to, count uint64) {
	s.steps = append(s.steps, step{kind: stepNotice, notice: uint8(kind), offset: from, a: to, b: count})
}

// Bookmark records a bookmark.
func (s *Subscriber) Bookmark(p Position) {
	s.position(stepBookmark, p, p.Epoch)
}

// Disconnected records that the connection ended. What comes next is Resumed, Subscribed or a refusal.
func (s *Subscriber) Disconnected() {
	s.steps = append(s.steps, step{kind: stepDisconnected})
}

// EpochChanged records that the log, now in epoch, refused p as EPOCH_CHANGED.
func (s *Subscriber) EpochChanged(p Position, epoch string) {
	s.position(stepEpochChanged, p, epoch)
}

// PositionGone records that the log, now in epoch, refused p as POSITION_GONE.
func (s *Subscriber) PositionGone(p Position, epoch string) {
	s.position(stepPositionGone, p, epoch)
}

// Complete records that, by now, everything up to offset must have come.
func (s *Subscriber) Complete(offset uint64) {
	s.steps = append(s.steps, step{kind: stepComplete, offset: offset})
}

func (s *Subscriber) position(kind stepKind, p Position, log string) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.steps = append(s.steps, step{kind: kind, number: s.r.epochLocked(p.Epoch), log: s.r.epochLocked(log), offset: p.Offset})
}
