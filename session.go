package runnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

const (
	heartbeatEvery = 15 * time.Second // owed after this long without sending, less up to a tenth
	deadAfter      = 35 * time.Second // a server that says nothing for this long is gone
	stableAfter    = 5 * time.Second  // a stream that lived this long starts a new row of attempts
)

// State is how a session stands with the server.
type State string

// The states a session reports to OnState. A session that moves to another server without a pause stays what it is.
const (
	StateConnecting State = "connecting" // for the first time, or again
	StateLive       State = "live"
	StateBehind     State = "behind"  // connected, and a subscription that had been live reads the log because it was too slow
	StateOffline    State = "offline" // no server could be reached, and it goes on trying; or the session is over
)

// Session is one stream to the server with any number of subscriptions and publishes. It reconnects by itself: subscriptions resume,
// and publishes that were not acknowledged are sent again, in order, with the same ids.
type Session struct {
	c       *Client
	onState func(State)
	buffer  buffer
	ctx     context.Context
	stop    context.CancelFunc
	first   chan struct{} // closed when the first connection stands, or the session is over

	// Owned by run.
	state    State           // as reported
	token    string          // of the stream
	refused  string          // not taken by the server
	left     string          // target of the link that has broken
	spread   bool            // it is to take its time before it goes to another
	pause    time.Duration   // before the next attempt
	expiring chan<- struct{} // of the stream: the server warns; nil without a TokenSource

	mu      sync.Mutex
	err     error // why the session is over
	subs    map[uint32]*Subscription
	lastSub uint32
	lastReq uint64
	unacked []*Receipt // in the order sent
	bytes   int        // of unacked
	room    chan struct{}
	out     []*runnelv1.StreamRequest
	send    chan struct{} // receives when out is not empty
	joined  bool          // first is closed
	online  bool          // what is queued is sent
	away    bool          // the connection has broken
}

// SessionOption configures a Session.
type SessionOption func(*Session)

// OnState reports changes of the session's state. The function must not block; it may call the client.
func OnState(f func(State)) SessionOption { return func(s *Session) { s.onState = f } }

// Session opens a session and waits for its first connection, at most the client's connect timeout.
func (c *Client) Session(ctx context.Context, opts ...SessionOption) (*Session, error) {
	s := &Session{
		c: c, onState: func(State) {}, buffer: buffer{windowEvents, windowBytes, BufferWait}, first: make(chan struct{}), subs: map[uint32]*Subscription{},
		room: make(chan struct{}, 1), send: make(chan struct{}, 1),
	}
	for _, set := range opts {
		set(s)
	}
	s.ctx, s.stop = context.WithCancel(c.ctx)
	if c.ctx.Err() != nil {
		s.stop()
		return nil, ErrClosed
	}
	c.group.Go(s.run)
	select {
	case <-s.first:
	case <-ctx.Done():
		s.Close()
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, s.err
}

// Close ends the session and its subscriptions at once. Publishes that are not acknowledged fail with ErrClosed.
func (s *Session) Close() { s.fail(ErrClosed) }

// fail ends the session for a reason; the first one stays.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	err = s.err
	subs := s.subs
	s.subs = map[uint32]*Subscription{}
	unacked := s.unacked
	s.unacked, s.bytes = nil, 0
	if !s.joined {
		s.joined = true
		close(s.first)
	}
	s.mu.Unlock()
	s.stop()
	for _, sub := range subs {
		sub.fail(err)
	}
	for _, r := range unacked {
		s.finish(r, Ack{}, err)
	}
}

// run keeps the session connected until it is over.
func (s *Session) run() {
	var b retry
	deadline := time.Now().Add(s.c.o.connectTimeout)
	defer s.c.forget(s)
	defer s.report(StateOffline)
	s.report(StateConnecting)
	for {
		began := time.Now()
		err := s.connect()
		if s.ctx.Err() != nil {
			s.fail(ErrClosed)
			return
		}
		s.mu.Lock()
		never := !s.joined
		s.online, s.away = false, true
		signal(s.room) // who waits for room learns that the buffer's policy is to decide
		s.mu.Unlock()
		switch {
		case s.state == StateLive || s.state == StateBehind:
			s.report(StateConnecting)
		case !answered(err):
			s.report(StateOffline) // until there is a connection again: not from attempt to attempt
		}
		if s.c.unauthenticated(err) && s.refused != s.token {
			s.refused = s.token // once: the next may be taken
			continue
		}
		if !passing(err) || never && time.Now().After(deadline) {
			s.fail(err)
			return
		}
		if time.Since(began) > stableAfter || toldToMove(err) {
			b.reset()
		}
		atLeast := max(retryAfter(err), s.pause)
		s.pause = 0
		if s.c.wait(s.ctx, &b, atLeast) != nil {
			s.fail(ErrClosed)
			return
		}
	}
}

// toldToMove says that a stream which stood has ended because its server stops, which is no fault to back off from.
func toldToMove(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reasonDraining && !e.FromServer
}

// answered says that it was a server that refused.
func answered(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.FromServer
}

// report tells the application of a state that is new.
func (s *Session) report(now State) {
	if now != s.state {
		s.state = now
		s.c.stands(s, now)
		s.onState(now)
	}
}

// reportConnected tells the application whether a subscription is behind.
func (s *Session) reportConnected() {
	now := StateLive
	s.mu.Lock()
	for _, sub := range s.subs {
		if sub.behind {
			now = StateBehind
		}
	}
	s.mu.Unlock()
	s.report(now)
}

// connect opens a stream and serves it, and those that take its place, until one breaks.
func (s *Session) connect() error {
	l := s.c.use()
	if s.spread && l.target != s.left {
		s.spread = false
		s.c.done(l)
		if err := sleep(s.ctx, s.c.spreading(false)); err != nil {
			return err
		}
		l = s.c.use()
	}
	if err := s.fillSnapshots(s.ctx); err != nil {
		s.c.done(l)
		return err
	}
	one, token, err := s.open(s.ctx, l, s.refused)
	s.token = token
	if err != nil {
		s.c.failed(l, err)
		s.c.done(l)
		return err
	}
	for {
		s.c.counts.opened.Add(1)
		next, err := s.serve(one)
		if next == nil {
			s.c.sent(one, err)
			s.broken(one, err)
			return err
		}
		s.c.counts.moved.Add(1)
		one, s.token = next, next.token
		if err := s.fillSnapshots(s.ctx); err != nil {
			one.close(s)
			return err
		}
	}
}

// broken decides how long to stay away after a connection that has broken without a word: all who had one to the same server lost it, perhaps,
// and the servers that are left should not get them all at once.
func (s *Session) broken(one *opened, err error) {
	if s.ctx.Err() != nil {
		return
	}
	s.c.counts.broken.Add(1)
	var e *Error
	if !errors.As(err, &e) || e.FromServer || toldToMove(err) {
		return
	}
	// Who knows one address only tries that first: most breaks are between the two, and the server is still there.
	anywhere := one.link.detour.several()
	s.pause = s.c.spreading(!anywhere)
	s.spread, s.left = !anywhere, one.link.target
}

// resume queues what a new connection needs: all subscriptions where they were, all publishes not acknowledged.
func (s *Session) resume() {
	s.mu.Lock()
	s.out = nil
	ids := make([]uint32, 0, len(s.subs))
	for id := range s.subs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		s.subs[id].behind = false
		s.subscribeLocked(s.subs[id])
	}
	for _, r := range s.unacked {
		s.publishLocked(r)
	}
	s.online, s.away = true, false
	if !s.joined {
		s.joined = true
		close(s.first)
	}
	s.mu.Unlock()
	s.reportConnected()
}

func (s *Session) subscribeLocked(sub *Subscription) {
	s.lastReq++
	sub.request = s.lastReq
	s.queueLocked(&runnelv1.StreamRequest{RequestId: s.lastReq, Request: &runnelv1.StreamRequest_Subscribe{Subscribe: sub.command()}})
}

func (s *Session) publishLocked(r *Receipt) {
	s.lastReq++
	r.request = s.lastReq
	s.queueLocked(&runnelv1.StreamRequest{RequestId: s.lastReq, Request: &runnelv1.StreamRequest_Publish{Publish: r.publish}})
}

func (s *Session) queueLocked(r *runnelv1.StreamRequest) {
	s.out = append(s.out, r)
	select {
	case s.send <- struct{}{}:
	default:
	}
}

// write sends what is queued, and heartbeats, until the stream ends.
func (s *Session) write(ctx context.Context, stream runnelv1.StreamService_EstablishStreamClient) {
	every := heartbeatEvery - rand.N(heartbeatEvery/10)
	beat := time.NewTimer(every)
	defer beat.Stop()
	for {
		s.mu.Lock()
		batch := s.out
		s.out = nil
		s.mu.Unlock()
		for _, r := range batch {
			if stream.Send(r) != nil {
				return // Recv has the reason
			}
		}
		if len(batch) > 0 {
			beat.Reset(every)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.send:
		case <-beat.C:
			s.mu.Lock()
			s.queueLocked(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Heartbeat{Heartbeat: &runnelv1.Heartbeat{}}})
			s.mu.Unlock()
		}
	}
}

// control handles one control; an error breaks the stream.
func (s *Session) control(c *runnelv1.Control) error {
	switch m := c.GetControl().(type) {
	case *runnelv1.Control_Heartbeat:
		if ms := m.Heartbeat.GetSpreadMs(); ms > 0 {
			s.c.spreads(ms)
		}
	case *runnelv1.Control_Published:
		s.published(c.GetRequestId(), m.Published)
	case *runnelv1.Control_CommandError:
		return s.commandError(c.GetRequestId(), fromStatus(status.FromProto(m.CommandError.GetStatus())))
	case *runnelv1.Control_Subscribed:
		if sub := s.subscription(m.Subscribed.GetSubscription()); sub != nil {
			sub.subscribed(m.Subscribed.GetPosition())
		}
	case *runnelv1.Control_Notice:
		if m.Notice.GetKind() == runnelv1.NoticeKind_NOTICE_KIND_TOKEN_EXPIRING && s.expiring != nil {
			select {
			case s.expiring <- struct{}{}:
			default:
			}
		}
		if sub := s.subscription(m.Notice.GetSubscription()); sub != nil {
			sub.noticed(m.Notice)
			if kind := m.Notice.GetKind(); kind == runnelv1.NoticeKind_NOTICE_KIND_BEHIND || kind == runnelv1.NoticeKind_NOTICE_KIND_CAUGHT_UP {
				s.mu.Lock()
				sub.behind = kind == runnelv1.NoticeKind_NOTICE_KIND_BEHIND
				s.mu.Unlock()
				s.reportConnected()
			}
		}
	case *runnelv1.Control_Bookmark:
		if sub := s.subscription(m.Bookmark.GetSubscription()); sub != nil {
			sub.bookmarked(m.Bookmark.GetPosition())
		}
	case *runnelv1.Control_Unsubscribed:
		if st := m.Unsubscribed.GetStatus(); st != nil {
			s.drop(m.Unsubscribed.GetSubscription(), fromStatus(status.FromProto(st)))
		}
		s.reportConnected() // it may have been the one that was behind
	case *runnelv1.Control_Drain:
		if m.Drain.GetWithinMs() > 0 {
			return nil // there is time to begin elsewhere first
		}
		return &Error{Code: codes.Unavailable, Reason: reasonDraining, Message: "the server asks to move: " + m.Drain.GetReason()}
	}
	return nil
}

func (s *Session) subscription(id uint32) *Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subs[id]
}

// drop ends one subscription.
func (s *Session) drop(id uint32, err error) {
	s.mu.Lock()
	sub := s.subs[id]
	delete(s.subs, id)
	s.mu.Unlock()
	if sub != nil {
		sub.fail(err)
	}
}

// commandError ends the command it answers, unless it may succeed later: then the stream is opened anew, after a while.
func (s *Session) commandError(request uint64, err *Error) error {
	if passing(err) {
		return err
	}
	s.mu.Lock()
	for id, sub := range s.subs {
		if sub.request == request {
			s.mu.Unlock()
			s.drop(id, err)
			return nil
		}
	}
	s.mu.Unlock()
	s.acknowledge(request, Ack{}, err)
	return nil
}

// Subscribe follows a pattern on the session and returns when the server has accepted it.
func (s *Session) Subscribe(ctx context.Context, pattern string, opts ...SubscribeOption) (*Subscription, error) {
	sub := newSubscription(s, pattern, opts)
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil, s.err
	}
	s.lastSub++
	sub.id = s.lastSub
	s.subs[sub.id] = sub
	if s.online {
		s.subscribeLocked(sub)
	}
	s.mu.Unlock()
	select {
	case <-sub.accepted:
	case <-ctx.Done():
		sub.Close()
		return nil, ctx.Err()
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.err != nil && len(sub.queue) == 0 {
		return nil, sub.err
	}
	return sub, nil
}

// Subscribe follows a pattern on a session of its own, which ends with the subscription.
func (c *Client) Subscribe(ctx context.Context, pattern string, opts ...SubscribeOption) (*Subscription, error) {
	s, err := c.Session(ctx)
	if err != nil {
		return nil, err
	}
	sub, err := s.Subscribe(ctx, pattern, opts...)
	if err != nil {
		s.Close()
		return nil, err
	}
	sub.own = s
	return sub, nil
}
