// Package session is one client's stream: its subscriptions, each live or behind, their overflow policies, and the control
// messages between events.
//
// A session never writes. Whoever owns the transport waits for Ready, asks Next for a frame, hands its bytes to the transport, and
// calls Sent; only then do cursors move. Next never blocks: pages of the log are read by the Replayer's workers.
//
// Next, Sent and Blocked belong to the transport's one writer. All other methods are safe for concurrent use.
package session

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/topic"
)

// Config is fixed for a session's life. All fields but Budget, Meter, Silence and Wake are required.
type Config struct {
	MaxSubscriptions int
	Heartbeat        time.Duration // send one after this long without sending
	Silence          time.Duration // end a session that owes requests after this long without one; 0: it owes none
	SendTimeout      time.Duration // end a session whose transport takes nothing for this long
	Replayer         *Replayer
	Budget           *budget.Budget // the session and what it holds count against it
	Meter            *Meter
	// Status is what the client gets for an error that ends one subscription.
	Status func(error) *status.Status
	// Wake is called when Next may have a frame, or the session's end, in place of Ready. It must not block, nor call the session.
	Wake func()
}

const (
	// MaxControls is how many controls wait at most before Backlogged says so.
	MaxControls = 1024
	// stallAfter is how long a subscription is held up before events are dropped or its session ends.
	stallAfter = 100 * time.Millisecond
	// tickEvery is how often a session in trouble is looked at.
	tickEvery = 250 * time.Millisecond
)

// What a session and a subscription are counted as in the budget: measured, with the transport's part.
const (
	sessionCost      = 40 << 10
	subscriptionCost = 1 << 10
)

// Session is one client's stream.
type Session struct {
	cfg   Config
	ready chan struct{}

	mu       sync.Mutex
	subs     map[uint32]*subscription
	last     uint32 // last id assigned
	controls []*runnelv1.Control
	flushes  uint64          // times that controls were handed over
	queue    []*subscription // have something to send, in turn
	inflight []move
	over     []*subscription // have ended by themselves, and are to be released without the lock
	err      error           // why the session is over
	// finishing: the client has said all it had to say.
	finishing bool

	gone      tally // of subscriptions that are over
	rate      rate
	began     time.Time
	sent      time.Time // when something was last sent
	heard     time.Time // when a request last came
	marked    time.Time // when bookmarks were last looked at
	blocked   time.Time // since when the transport takes nothing; zero: it takes
	pauses    uint64    // times the transport was blocked, however short
	held      int       // subscriptions that are held up
	paced     pacing    // subscriptions that wait for their next interval
	timer     *time.Timer
	due       time.Time     // when timer fires
	heartbeat time.Duration // jittered
}

// New starts a session; the caller must Close it. budget.ErrExhausted if there is no memory for it.
func New(cfg Config) (*Session, error) {
	if !cfg.Budget.Take(budget.Sessions, sessionCost) {
		return nil, budget.ErrExhausted
	}
	now := time.Now()
	s := &Session{
		cfg: cfg, ready: make(chan struct{}, 1), subs: map[uint32]*subscription{},
		began: now, sent: now, heard: now, marked: now, rate: rate{since: now},
		heartbeat: cfg.Heartbeat - rand.N(cfg.Heartbeat/10+1),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = s.dueLocked(now)
	s.timer = time.AfterFunc(s.due.Sub(now), s.tick)
	cfg.Meter.sessions(1)
	return s, nil
}

// Close frees everything the session holds.
func (s *Session) Close() {
	s.End(ErrEnded)
	s.mu.Lock()
	if s.subs == nil {
		s.mu.Unlock()
		return
	}
	subs, over := s.subs, s.over
	s.over = nil
	s.subs, s.queue, s.inflight, s.controls, s.paced = nil, nil, nil, nil, nil
	for _, sub := range subs {
		sub.closeLocked()
	}
	s.mu.Unlock()
	for _, sub := range subs {
		sub.release()
	}
	for _, sub := range over {
		sub.release()
	}
	s.cfg.Budget.Give(budget.Sessions, sessionCost)
	s.cfg.Meter.sessions(-1)
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
		if slow := (*SlowConsumerError)(nil); errors.As(err, &slow) {
			s.cfg.Meter.Slowed()
		}
	}
	s.wake()
}

// Finish ends the session once everything that is there now was sent: answers, and events up to the head of what is followed.
// The end is ErrFinished.
func (s *Session) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishing = true
	for _, sub := range s.subs {
		sub.queueLocked() // paced ones too
	}
	s.wake()
}

// Err is why the session is over; nil if it is not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Ready receives when Next may have a frame, or the session's end, where Config.Wake is not set.
func (s *Session) Ready() <-chan struct{} { return s.ready }

func (s *Session) wake() {
	if s.cfg.Wake != nil {
		s.cfg.Wake()
		return
	}
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

// Next fills f, which must be empty, with the next frame of about maxBytes (more only for a single larger event). It is empty
// if there is none now; an error is the reason why the session is over. After a frame, Sent must be called before Next is
// called again.
func (s *Session) Next(f *Frame, maxBytes int) error {
	s.mu.Lock()
	err := s.nextLocked(f, maxBytes)
	over := s.over
	s.over = nil
	s.mu.Unlock()
	for _, sub := range over {
		sub.release()
	}
	return err
}

func (s *Session) nextLocked(f *Frame, maxBytes int) error {
	f.open = -1
	if s.err == nil {
		s.fillLocked(f, maxBytes)
	}
	if len(s.controls) > 0 {
		// Controls apply before the deliveries of the same message, wherever they stand in it.
		if err := s.controlsLocked(f); err != nil {
			return err
		}
	}
	if f.Bytes > 0 {
		s.cfg.Meter.frame(f)
		f.charge(s.cfg.Budget)
		return nil
	}
	switch {
	case len(s.queue) > 0:
		s.wake() // a cursor was moved into place: the next call has its events
	case s.finishing && !s.readingLocked():
		s.endLocked(ErrFinished)
	}
	return s.err
}

func (s *Session) controlsLocked(f *Frame) (err error) {
	f.appendFresh(func(b []byte) []byte {
		b, err = proto.MarshalOptions{}.MarshalAppend(b, &runnelv1.StreamResponse{Controls: s.controls})
		return b
	})
	clear(s.controls)
	s.controls = s.controls[:0]
	s.flushes++
	return err
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
	if len(s.queue) == 0 {
		return
	}
	now := time.Now()
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
		sub.fill(f, (maxBytes-f.Bytes)/(len(waiting)-i), now)
	}
	if cap(s.queue) == 0 {
		s.queue = waiting[:0] // none came back: the space serves again
	}
}

// Sent says that the transport has taken the last frame. It reports whether Next may have another already.
func (s *Session) Sent() (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = time.Now()
	for i := range s.inflight {
		s.inflight[i].sub.sent(&s.inflight[i])
	}
	clear(s.inflight)
	s.inflight = s.inflight[:0]
	more = len(s.queue) > 0 || len(s.controls) > 0 || s.err != nil || s.finishing
	if more && s.cfg.Wake == nil {
		s.wake()
	}
	return more
}

// Blocked says that the transport takes nothing at present, or takes again. While it does not, and for long, overflow policies act.
func (s *Session) Blocked(blocked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case blocked && s.blocked.IsZero():
		s.blocked = time.Now()
		s.pauses++
		s.lookLocked(s.blocked.Add(tickEvery))
	case !blocked:
		s.blocked = time.Time{}
	}
}

// Subscribe adds a subscription. The answer to request is queued before its first event. On error the caller still owns
// o.Feed; otherwise the session closes it. A session that is over returns its reason.
func (s *Session) Subscribe(request uint64, o Options) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case len(s.subs) >= s.cfg.MaxSubscriptions:
		return ErrTooMany
	case o.ID == 0:
		for o.ID = s.last + 1; s.subs[o.ID] != nil || o.ID == 0; o.ID++ {
		}
		s.last = o.ID
	case s.subs[o.ID] != nil:
		return ErrDuplicateID
	}
	if !s.cfg.Budget.Take(budget.Sessions, o.cost()) {
		return budget.ErrExhausted
	}
	sub := newSubscription(s, o)
	s.subs[o.ID] = sub
	s.cfg.Meter.subscriptions(1)
	s.controls = append(s.controls, &runnelv1.Control{RequestId: request, Control: &runnelv1.Control_Subscribed{
		Subscribed: &runnelv1.Subscribed{Subscription: o.ID, Position: sub.position(), Overflow: o.Policy},
	}})
	if o.Gap != "" {
		sub.countGap()
		sub.notice(runnelv1.NoticeKind_NOTICE_KIND_GAP, 0, 0, 0, o.Gap)
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
	sub.closeLocked()
	s.controls = append(s.controls, &runnelv1.Control{RequestId: request, Control: &runnelv1.Control_Unsubscribed{
		Unsubscribed: &runnelv1.Unsubscribed{Subscription: id},
	}})
	s.wake()
	s.mu.Unlock()
	sub.release()
	return nil
}

// Restrict ends every subscription for whose pattern refuse returns a status, which is the client's answer; nothing more comes for it
// behind that. It returns the patterns.
func (s *Session) Restrict(refuse func(topic.Pattern) *status.Status) (ended []topic.Pattern) {
	s.mu.Lock()
	var over []*subscription
	for _, sub := range s.subs {
		st := refuse(sub.o.Pattern)
		if st == nil {
			continue
		}
		sub.expelLocked(st)
		over = append(over, sub)
		ended = append(ended, sub.o.Pattern)
	}
	if over != nil {
		s.wake()
	}
	s.mu.Unlock()
	for _, sub := range over {
		sub.release()
	}
	return ended
}

// Credit returns credit to a subscription; one that has just ended is ignored.
func (s *Session) Credit(id uint32, events uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sub := s.subs[id]; sub != nil && sub.o.Credit > 0 {
		sub.credit, sub.dry = min(sub.credit+uint64(events), maxCredit), time.Time{}
		sub.queueLocked()
		s.wake()
	}
}
