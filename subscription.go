package runnel

import (
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"sync"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Policy is what the server does when this subscriber is slower than the topic.
type Policy = runnelv1.OverflowPolicy

// The overflow policies.
const (
	CatchUp    = runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP    // read the log at its own pace; needs history
	DropOldest = runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST // skip, and say how many
	Disconnect = runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT  // end the subscription
	Conflate   = runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE    // keep the newest of each key
)

// defaultCredit is how many events may be on their way to an application that has not yet taken them.
const defaultCredit = 1024

// queueMost is how many events are held for a subscription without credit; beyond it the whole stream waits.
const queueMost = 4096

// SubscribeOption configures a subscription.
type SubscribeOption func(*Subscription)

// From says where to begin; default New.
func From(s Start) SubscribeOption { return func(sub *Subscription) { sub.start = s } }

// Overflow sets the overflow policy; default the namespace's.
func Overflow(p Policy) SubscribeOption { return func(sub *Subscription) { sub.want.Overflow = p } }

// MaxLag sets how many events behind the head DropOldest and Disconnect allow; 0: the namespace's.
func MaxLag(n uint32) SubscribeOption { return func(sub *Subscription) { sub.want.MaxLag = n } }

// MaxAge sets how old, by its timestamp, the oldest event not yet sent may get before DropOldest and Disconnect act, in whole
// milliseconds; 0: the namespace's.
func MaxAge(d time.Duration) SubscribeOption {
	return func(sub *Subscription) { sub.want.MaxAgeMs = uint32(min(max(d.Milliseconds(), 0), math.MaxUint32)) }
}

// MinInterval sets Conflate's shortest time between batches, in milliseconds.
func MinInterval(ms uint32) SubscribeOption {
	return func(sub *Subscription) { sub.want.MinIntervalMs = ms }
}

// Credit sets how many events may be on their way to the application; default 1,024. It is returned as the application takes
// events, so the server sees how fast the application is. 0: none; then one subscription that is not read holds up its session.
func Credit(n uint32) SubscribeOption { return func(sub *Subscription) { sub.want.Credit = n } }

// OnNotice sends notices to a function, all of them. Without it those of a loss, GAP and DROPPED, are yielded as errors that are not
// Terminal, and the others are counted at most (Stats). It is called by Next and must not block.
func OnNotice(f func(Notice)) SubscribeOption {
	return func(sub *Subscription) { sub.onNotice = f }
}

// Subscription is a followed pattern. Next and Events belong to one goroutine at a time; everything else is safe for concurrent use.
type Subscription struct {
	// Fixed after Subscribe.
	s        *Session
	own      *Session // closed with the subscription
	id       uint32
	start    Start
	want     runnelv1.Subscription // pattern, policy, credit, lag, interval
	onNotice func(Notice)
	accepted chan struct{} // closed with the first answer

	// Guarded by s.mu.
	request uint64 // on its way
	behind  bool   // it has fallen behind, and has not caught up

	mu       sync.Mutex
	queue    []batch
	held     int // events in queue
	more     chan struct{}
	space    chan struct{}
	err      error    // why it is over, behind the queue
	answered bool     // accepted is closed
	received Position // up to here everything is in the queue or was handed over
	handed   Position // up to here everything was handed over
	snapshot Position // last_event: where the snapshot ends; the zero Position: complete, or none
	returned uint32   // events taken since credit was last returned
	stats    Stats
}

// Stats counts what became of the events that matched a subscription, up to where the application stands (Position):
// every one was delivered, dropped, conflated, or lies in a gap. Those of a snapshot (Last) are delivered too.
type Stats struct {
	Delivered uint64 // handed over
	Dropped   uint64 // by DropOldest, or where nothing is kept
	Conflated uint64 // superseded by a newer event of their key
	Gaps      uint64 // stretches of the log that are gone; nobody knows how many events matched there
}

// Stats is what was counted so far.
func (sub *Subscription) Stats() Stats {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	return sub.stats
}

// batch is events that came together, or a notice, or neither: then only the position moves.
type batch struct {
	events   []Event
	partial  bool // the events are of a snapshot that is not complete: the position does not move
	notice   *Error
	position Position // where there are no events
}

func newSubscription(s *Session, pattern string, opts []SubscribeOption) *Subscription {
	sub := &Subscription{s: s, start: New(), accepted: make(chan struct{}), more: make(chan struct{}, 1), space: make(chan struct{}, 1)}
	sub.want.Pattern, sub.want.Credit = pattern, defaultCredit
	for _, set := range opts {
		set(sub)
	}
	return sub
}

// command is the request that begins or resumes the subscription.
func (sub *Subscription) command() *runnelv1.Subscription {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	r := &runnelv1.Subscription{
		Id: sub.id, Pattern: sub.want.GetPattern(), Start: sub.start.at, Overflow: sub.want.GetOverflow(),
		MaxLag: sub.want.GetMaxLag(), MinIntervalMs: sub.want.GetMinIntervalMs(), MaxAgeMs: sub.want.GetMaxAgeMs(), Credit: sub.want.GetCredit(),
	}
	if sub.received.Epoch != "" {
		r.Start = After(sub.received).at
		if sub.snapshot.Epoch != "" {
			r.Start = After(sub.snapshot).at
		}
	}
	if r.GetCredit() > 0 {
		// What is queued was sent on the old stream's credit and will be returned on this one's.
		if held := uint32(sub.held) + sub.returned; held < r.GetCredit() {
			r.Credit -= held
		} else {
			r.Credit = 1
		}
	}
	return r
}

func (sub *Subscription) subscribed(p *runnelv1.Position) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if !sub.answered {
		sub.answered = true
		close(sub.accepted)
		sub.received = Position{p.GetEpoch(), p.GetOffset()}
		sub.handed = sub.received
		if sub.start.last() && p.GetOffset() > 0 {
			sub.snapshot, sub.received.Offset = sub.received, 0
		}
		return
	}
	// Offsets go on counting across epochs, and what was received is part of the new one.
	sub.received.Epoch = p.GetEpoch()
}

// deliver queues events. Those that came before are dropped: a resumed stream may bring some again.
func (sub *Subscription) deliver(ctx context.Context, events []Event) {
	for {
		sub.mu.Lock()
		if sub.want.GetCredit() > 0 || sub.held < queueMost || sub.err != nil {
			break
		}
		sub.mu.Unlock()
		select {
		case <-sub.space:
		case <-ctx.Done():
			return
		}
	}
	defer sub.mu.Unlock()
	kept := events[:0]
	for i := range events {
		e := &events[i]
		e.Position.Epoch = sub.received.Epoch
		if offset := e.Position.Offset; offset != 0 {
			if offset <= sub.received.Offset {
				sub.returned++ // it cost credit all the same
				continue
			}
			sub.received.Offset = offset
			if sub.snapshot.Epoch != "" && offset >= sub.snapshot.Offset {
				// The snapshot is complete with this event, and the position may move again.
				sub.pushLocked(batch{events: kept, partial: true})
				kept = events[i:i]
				sub.snapshot = Position{}
			}
		}
		kept = append(kept, *e)
	}
	sub.pushLocked(batch{events: kept, partial: sub.snapshot.Epoch != ""})
}

// positionLocked is where a subscription stands that has handed over all it received. Within a snapshot that is the snapshot's
// end, but only once all of it was received.
func (sub *Subscription) positionLocked() Position {
	if sub.snapshot.Epoch == "" {
		return sub.received
	}
	if sub.received.Offset < sub.snapshot.Offset {
		return Position{}
	}
	sub.snapshot = Position{}
	return sub.received
}

func (sub *Subscription) noticed(n *runnelv1.Notice) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	switch n.GetKind() {
	case runnelv1.NoticeKind_NOTICE_KIND_GAP, runnelv1.NoticeKind_NOTICE_KIND_DROPPED:
		sub.received.Offset = max(sub.received.Offset, n.GetTo())
	}
	sub.pushLocked(batch{notice: noticeError(n), position: sub.positionLocked()})
}

func (sub *Subscription) bookmarked(p *runnelv1.Position) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.received = Position{p.GetEpoch(), max(sub.received.Offset, p.GetOffset())}
	sub.pushLocked(batch{position: sub.positionLocked()})
}

func (sub *Subscription) pushLocked(b batch) {
	if len(b.events) == 0 && b.notice == nil && b.position.Epoch == "" {
		return
	}
	sub.queue = append(sub.queue, b)
	sub.held += len(b.events)
	sub.s.c.counts.received.Add(uint64(len(b.events)))
	if b.notice != nil {
		sub.s.c.counts.noticed(b.notice.Notice.Kind, b.notice.Notice.Count)
	}
	signal(sub.more)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fail ends the subscription behind what is queued.
func (sub *Subscription) fail(err error) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.err == nil {
		sub.err = err
	}
	if !sub.answered {
		sub.answered = true
		close(sub.accepted)
	}
	signal(sub.more)
	signal(sub.space)
}

// Next returns the next event. A notice is an *Error that is not Terminal, and the subscription goes on; ErrClosed after Close; any
// other error is the subscription's end.
func (sub *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		var e Event
		found, notice, err := sub.pop(&e)
		switch {
		case err != nil:
			return Event{}, err
		case notice != nil && sub.onNotice != nil:
			sub.onNotice(*notice.Notice)
		case notice != nil && notice.Notice.loses():
			return Event{}, notice
		case found == anEvent:
			return e, nil
		case found == nothing:
			select {
			case <-sub.more:
			case <-ctx.Done():
				return Event{}, ctx.Err()
			}
		}
	}
}

// What pop has found.
const (
	nothing = iota
	anEvent
	aPosition // perhaps with a notice
)

func (sub *Subscription) pop(e *Event) (found int, notice *Error, err error) {
	sub.mu.Lock()
	if len(sub.queue) == 0 || errors.Is(sub.err, ErrClosed) {
		defer sub.mu.Unlock()
		return nothing, nil, sub.err
	}
	b := &sub.queue[0]
	if len(b.events) == 0 {
		defer sub.mu.Unlock()
		if b.position.Epoch != "" {
			sub.handed = b.position
		}
		if notice = b.notice; notice != nil {
			sub.stats.add(notice.Notice)
		}
		sub.shiftLocked()
		return aPosition, notice, nil
	}
	*e, b.events[0] = b.events[0], Event{} // the rest of the batch does not keep it
	b.events = b.events[1:]
	if !b.partial {
		sub.handed = e.Position
	}
	if len(b.events) == 0 {
		sub.shiftLocked()
	}
	credit := sub.tookLocked()
	sub.mu.Unlock()
	if credit > 0 {
		sub.s.credit(sub.id, credit)
	}
	return anEvent, nil, nil
}

func (s *Stats) add(n *Notice) {
	switch n.Kind {
	case "DROPPED":
		s.Dropped += n.Count
	case "CONFLATED":
		s.Conflated += n.Count
	case "GAP":
		s.Gaps++
	}
}

func (sub *Subscription) shiftLocked() {
	sub.queue[0] = batch{}
	sub.queue = sub.queue[1:]
}

// tookLocked counts an event that the application has taken, and says how much credit is to be returned now.
func (sub *Subscription) tookLocked() (credit uint32) {
	sub.held--
	sub.returned++
	sub.stats.Delivered++
	most := sub.want.GetCredit()
	if most == 0 {
		if sub.held == queueMost-1 {
			signal(sub.space)
		}
		return 0
	}
	if sub.returned*2 >= most || sub.held == 0 && sub.returned*4 >= most {
		credit, sub.returned = sub.returned, 0
	}
	return credit
}

// credit returns credit, if the session is connected; a new connection begins with fresh credit.
func (s *Session) credit(id uint32, events uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.online && s.subs[id] != nil {
		s.queueLocked(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Credit{Credit: &runnelv1.Credit{Subscription: id, Events: events}}})
	}
}

// Events yields what Next returns, until the subscription is over, ctx ends, or the loop is left. Leaving the loop does not end the
// subscription.
func (sub *Subscription) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			e, err := sub.Next(ctx)
			if errors.Is(err, ErrClosed) {
				return
			}
			if !yield(e, err) {
				return
			}
			var notice *Error
			if err != nil && (!errors.As(err, &notice) || notice.Terminal()) {
				return
			}
		}
	}
}

// Position is where the application stands: everything up to it was handed over. It is the zero Position while the snapshot of a
// subscription that began with Last is not complete.
func (sub *Subscription) Position() Position {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.snapshot.Epoch != "" {
		return Position{}
	}
	return sub.handed
}

// Close ends the subscription. Next returns ErrClosed from then on.
func (sub *Subscription) Close() {
	sub.fail(ErrClosed)
	sub.s.mu.Lock()
	if sub.s.subs[sub.id] == sub {
		delete(sub.s.subs, sub.id)
		if sub.s.online {
			sub.s.queueLocked(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: &runnelv1.Unsubscribe{Subscription: sub.id}}})
		}
	}
	sub.s.mu.Unlock()
	if sub.own != nil {
		sub.own.Close()
	}
}

// fillSnapshots completes, from history, snapshots that a broken connection has cut short: the newest events up to where the
// snapshot was taken, less those that have come. The stream then goes on behind that place.
func (s *Session) fillSnapshots(ctx context.Context) error {
	s.mu.Lock()
	var open []*Subscription
	for _, sub := range s.subs {
		sub.mu.Lock()
		if sub.snapshot.Epoch != "" {
			open = append(open, sub)
		}
		sub.mu.Unlock()
	}
	s.mu.Unlock()
	for _, sub := range open {
		if err := sub.fillSnapshot(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (sub *Subscription) fillSnapshot(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, token, err := sub.s.c.outgoing(ctx, sub.s.refused)
	if err != nil {
		return err
	}
	sub.s.token = token
	l := sub.s.c.use()
	defer sub.s.c.done(l)
	ch, err := sub.s.c.stream(l)
	if err != nil {
		return err
	}
	defer sub.s.c.left(l, ch)
	stream, err := ch.api.ReadHistory(out, &runnelv1.ReadHistoryRequest{
		Pattern: sub.want.GetPattern(), Start: Last().at, ToOffset: sub.snapshot.Offset,
	})
	if err != nil {
		return wrap(sub.s.ctx, err)
	}
	var m response
	for {
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			sub.mu.Lock()
			defer sub.mu.Unlock()
			sub.received, sub.snapshot = sub.snapshot, Position{}
			sub.pushLocked(batch{position: sub.received})
			return nil
		}
		if err != nil {
			return wrap(sub.s.ctx, err)
		}
		for _, d := range m.deliveries {
			sub.deliver(ctx, d.events)
		}
	}
}
