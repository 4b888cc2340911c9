// Package session is one client's stream: its subscriptions, each live or behind, their overflow policies, and the control
// messages between events.
//
// A session never writes. Whoever owns the transport waits for Ready, asks Next for a frame, hands its bytes to the transport, and
// calls Sent; only then do cursors move. Next never blocks: pages of the log are read by the Replayer's workers.
//
// Next, Sent and Blocked belong to the transport's one writer. All other methods are safe for concurrent use.
package session

import (
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
)

// Config is fixed for a session's life. All fields are required.
type Config struct {
	MaxSubscriptions int
	Heartbeat        time.Duration // send one after this long without sending
	Silence          time.Duration // end a session that owes requests after this long without one; 0: it owes none
	SendTimeout      time.Duration // end a session whose transport takes nothing for this long
	Replayer         *Replayer
}

const (
	// MaxFrameSlices is the most slices of a frame; grpc-go handles up to 63 without extra work.
	MaxFrameSlices = 62
	// MaxControls is how many controls wait at most before Backlogged says so.
	MaxControls = 1024
	// stallAfter is how long a transport takes nothing before overflow policies act on it.
	stallAfter = 100 * time.Millisecond
	// tickEvery is how often a session in trouble is looked at.
	tickEvery = 250 * time.Millisecond
)

// Session is one client's stream.
type Session struct {
	cfg   Config
	ready chan struct{}

	mu       sync.Mutex
	subs     map[uint32]*subscription
	last     uint32 // last id assigned
	controls []*runnelv1.Control
	queue    []*subscription // have something to send, in turn
	inflight []move
	err      error // why the session is over
	// finishing: the client has said all it had to say.
	finishing bool

	sent      time.Time // when something was last sent
	heard     time.Time // when a request last came
	marked    time.Time // when bookmarks were last looked at
	blocked   time.Time // since when the transport takes nothing; zero: it takes
	stalls    uint64    // times the transport was blocked for long
	timer     *time.Timer
	heartbeat time.Duration // jittered
}

// Frame is one message for the transport: the concatenation of its slices is an encoded runnel.v1.StreamResponse. They are
// shared and must not be changed.
type Frame struct {
	Slices [][]byte
	Bytes  int
	Events int
}

// New starts a session; the caller must Close it.
func New(cfg Config) *Session {
	now := time.Now()
	s := &Session{
		cfg: cfg, ready: make(chan struct{}, 1), subs: map[uint32]*subscription{},
		sent: now, heard: now, marked: now,
		heartbeat: cfg.Heartbeat - rand.N(cfg.Heartbeat/10+1),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.dueLocked(now), s.tick)
	return s
}

// Close frees everything the session holds.
func (s *Session) Close() {
	s.End(ErrEnded)
	s.mu.Lock()
	subs := s.subs
	s.subs, s.queue, s.inflight, s.controls = nil, nil, nil, nil
	for _, sub := range subs {
		sub.closed = true
	}
	s.mu.Unlock()
	for _, sub := range subs {
		sub.release()
	}
}

// End makes Next return err once the controls queued so far are sent. The first reason stays.
func (s *Session) End(err error) {
	s.mu.Lock()
	s.endLocked(err)
	s.mu.Unlock()
}

func (s *Session) endLocked(err error) {
	if s.err == nil {
		s.err = err
		s.timer.Stop()
	}
	s.wake()
}

// Finish ends the session once everything that is there now was sent: answers, and events up to the head of what is followed.
// The end is ErrFinished.
func (s *Session) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishing = true
	s.wake()
}

// Err is why the session is over; nil if it is not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Ready receives when Next may have a frame, or the session's end.
func (s *Session) Ready() <-chan struct{} { return s.ready }

func (s *Session) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Heard notes that a request came.
func (s *Session) Heard() {
	s.mu.Lock()
	s.heard = time.Now()
	s.mu.Unlock()
}

// Control queues a control for the client.
func (s *Session) Control(c *runnelv1.Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.controls = append(s.controls, c)
	s.wake()
}

// Backlogged says that the client does not take the answers to its commands: read no more of them for now.
func (s *Session) Backlogged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.controls) >= MaxControls && s.err == nil
}

// Next returns the next frame of about maxBytes (more only for a single larger event), nil if there is none now, or the
// reason why the session is over. After a frame, Sent must be called before Next is called again.
func (s *Session) Next(maxBytes int) (*Frame, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &Frame{}
	if s.err == nil {
		s.fillLocked(f, maxBytes)
	}
	if len(s.controls) > 0 {
		// Controls apply before the deliveries of the same message, wherever they stand in it.
		b, err := proto.Marshal(&runnelv1.StreamResponse{Controls: s.controls})
		if err != nil {
			return nil, err
		}
		clear(s.controls)
		s.controls = s.controls[:0]
		f.Slices = append(f.Slices, b)
		f.Bytes += len(b)
	}
	if f.Bytes == 0 {
		switch {
		case len(s.queue) > 0:
			s.wake() // a cursor was moved into place: the next call has its events
		case s.finishing && !s.readingLocked():
			s.endLocked(ErrFinished)
		}
		return nil, s.err
	}
	return f, nil
}

// readingLocked says that a page of the log is on its way.
func (s *Session) readingLocked() bool {
	for _, sub := range s.subs {
		if sub.reading {
			return true
		}
	}
	return false
}

// fillLocked adds deliveries: round robin over the subscriptions that are ready, sharing the frame by bytes.
func (s *Session) fillLocked(f *Frame, maxBytes int) {
	waiting := s.queue
	s.queue = nil
	for i, sub := range waiting {
		// A delivery takes at least two slices, and one is kept for the controls.
		if room := maxBytes - f.Bytes; room <= 0 || len(f.Slices)+3 > MaxFrameSlices {
			s.queue = append(waiting[i:], s.queue...)
			return
		}
		sub.queued = false
		if s.err != nil {
			return
		}
		m, ok := sub.fill(f, (maxBytes-f.Bytes)/(len(waiting)-i))
		if ok {
			s.inflight = append(s.inflight, m)
		}
	}
}

// Sent says that the transport has taken the last frame.
func (s *Session) Sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = time.Now()
	for _, m := range s.inflight {
		m.sub.sent(m)
	}
	clear(s.inflight)
	s.inflight = s.inflight[:0]
	if len(s.queue) > 0 || s.err != nil {
		s.wake()
	}
}

// Blocked says whether the transport takes nothing at present. While it does not, and for long, overflow policies act.
func (s *Session) Blocked(blocked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case blocked && s.blocked.IsZero():
		s.blocked = now
		s.timer.Reset(tickEvery)
	case !blocked && !s.blocked.IsZero():
		if now.Sub(s.blocked) >= stallAfter {
			s.stalls++
		}
		s.blocked = time.Time{}
	}
}

// Subscribe adds a subscription. The answer to request is queued before its first event. On error the caller still owns
// o.Feed; otherwise the session closes it.
func (s *Session) Subscribe(request uint64, o Options) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil || s.subs == nil:
		return ErrEnded
	case len(s.subs) >= s.cfg.MaxSubscriptions:
		return ErrTooMany
	case o.ID == 0:
		for o.ID = s.last + 1; s.subs[o.ID] != nil || o.ID == 0; o.ID++ {
		}
		s.last = o.ID
	case s.subs[o.ID] != nil:
		return ErrDuplicateID
	}
	sub := newSubscription(s, o)
	s.subs[o.ID] = sub
	s.controls = append(s.controls, &runnelv1.Control{RequestId: request, Control: &runnelv1.Control_Subscribed{
		Subscribed: &runnelv1.Subscribed{Subscription: o.ID, Position: sub.position(), Overflow: o.Policy},
	}})
	if o.Gap != "" {
		sub.notice(&runnelv1.Notice{Kind: runnelv1.NoticeKind_NOTICE_KIND_GAP, Reason: o.Gap})
	}
	sub.told = sub.seen
	sub.queueLocked()
	s.wake()
	return nil
}

// Unsubscribe ends a subscription; nothing more comes for it behind the answer.
func (s *Session) Unsubscribe(request uint64, id uint32) error {
	s.mu.Lock()
	sub := s.subs[id]
	if sub == nil {
		s.mu.Unlock()
		return ErrUnknownID
	}
	delete(s.subs, id)
	sub.closed = true
	s.controls = append(s.controls, &runnelv1.Control{RequestId: request, Control: &runnelv1.Control_Unsubscribed{
		Unsubscribed: &runnelv1.Unsubscribed{Subscription: id},
	}})
	s.wake()
	s.mu.Unlock()
	sub.release()
	return nil
}

// Credit returns credit to a subscription; one that has just ended is ignored.
func (s *Session) Credit(id uint32, events uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.subs[id]; sub != nil && sub.o.Credit > 0 {
		sub.credit = min(sub.credit+uint64(events), maxCredit)
		sub.queueLocked()
		s.wake()
	}
}

// Positions is where each subscription stands.
func (s *Session) Positions() map[uint32]engine.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[uint32]engine.Position, len(s.subs))
	for id, sub := range s.subs {
		p := sub.position()
		all[id] = engine.Position{Epoch: p.GetEpoch(), Offset: p.GetOffset()}
	}
	return all
}
