package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

func describe(t engine.TopicState, s engine.State) (*runnelv1.Topic, error) {
	d := &runnelv1.Topic{
		Topic: t.Topic.String(), Epoch: s.Epoch, OldestOffset: t.Oldest, NewestOffset: t.Newest, Durability: s.Durability,
	}
	if t.Last.Wire != nil {
		d.Last = new(runnelv1.Event)
		if err := proto.Unmarshal(t.Last.Wire, d.Last); err != nil {
			return nil, fmt.Errorf("%w: %w", engine.ErrCorrupt, err)
		}
	}
	return d, nil
}

// Subscribe checks a subscription, looks up where it starts, and adds it to the session.
func (b *Broker) Subscribe(ctx context.Context, s *session.Session, request uint64, who Caller, r *runnelv1.Subscription) (err error) {
	p, log, err := b.pattern(&who, r.GetPattern(), auth.Subscribe)
	if err != nil {
		return err
	}
	o := session.Options{
		ID: r.GetId(), Pattern: p, Credit: r.GetCredit(), MaxLag: uint64(r.GetMaxLag()),
		MaxAge: time.Duration(r.GetMaxAgeMs()) * time.Millisecond, Interval: time.Duration(r.GetMinIntervalMs()) * time.Millisecond,
	}
	if err := b.policy(&o, r.GetOverflow(), log.State().History); err != nil {
		return err
	}
	if who.Limits != nil {
		if err := who.Limits.Subscribe(p.Namespace()); err != nil {
			return err
		}
		o.Release = func() { who.Limits.Unsubscribe(p.Namespace()) }
		defer func() {
			if err != nil {
				o.Release()
			}
		}()
	}
	conflating := o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE
	// The feed comes first: what is appended from here on is in its window, whatever the log answers below.
	if o.Feed, o.Log, err = b.hub.Open(p, conflating); err != nil {
		return err
	}
	o.State = o.Log.State()
	if err = b.start(ctx, &o, r.GetStart()); err == nil {
		err = s.Subscribe(request, o)
	}
	if err != nil {
		o.Feed.Close(conflating)
	}
	return err
}

// maxInterval is the longest interval between batches: whoever wants less than one an hour wants something else.
const maxInterval = time.Hour

// policy fills in what the namespace says where the subscription says nothing, and checks that they go together.
func (b *Broker) policy(o *session.Options, policy runnelv1.OverflowPolicy, history bool) error {
	rules := b.cfg.Rules(o.Pattern.Namespace())
	if _, known := runnelv1.OverflowPolicy_name[int32(policy)]; !known {
		return &InvalidError{"overflow", fmt.Sprintf("there is no policy %d", policy)}
	}
	if o.MaxLag == 0 {
		o.MaxLag = rules.MaxLag
	}
	if o.MaxAge == 0 {
		o.MaxAge = rules.MaxLagAge
	}
	if policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_UNSPECIFIED {
		if policy = rules.Overflow; policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP && !history {
			policy = runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST
		}
	}
	o.Policy = policy
	switch conflates := policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE; {
	case policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP && !history:
		return &InvalidError{"overflow", "CATCH_UP needs history, and this namespace keeps none"}
	case len(rules.Allowed) > 0 && !slices.Contains(rules.Allowed, policy):
		return &PolicyError{fmt.Sprintf("this namespace does not allow %s", policy)}
	case o.Interval > 0 && !conflates:
		return &InvalidError{"min_interval_ms", fmt.Sprintf("it goes with CONFLATE, and the policy is %s", policy)}
	case o.Interval > maxInterval:
		return &InvalidError{"min_interval_ms", fmt.Sprintf("it is more than an hour (%d)", maxInterval.Milliseconds())}
	}
	return nil
}

// start looks up where a subscription begins; new events if at is unset.
func (b *Broker) start(ctx context.Context, o *session.Options, at *runnelv1.StartPosition) (err error) {
	o.Start = o.State.Head
	if !o.State.History {
		// Nothing is kept, so every start is now; who was here before is told that something may be missing.
		if after := at.GetAfter(); after != nil {
			if err := o.Log.Check(engine.Position{Epoch: after.GetEpoch(), Offset: after.GetOffset()}); err != nil {
				return err
			}
			o.Gap = "this namespace keeps no history"
		}
		return checkTime(at)
	}
	if _, last := at.GetAt().(*runnelv1.StartPosition_LastEvent); last {
		o.Snapshot, err = o.Log.LastOffsets(ctx, o.Pattern, o.Start, maxSnapshot)
		return err
	}
	if at.GetAt() == nil {
		return nil
	}
	o.Start, err = b.resolve(ctx, o.Log, o.Pattern, o.State, at)
	return err
}

// resolve turns a start other than last_event into an offset: what follows it is to be read.
func (b *Broker) resolve(ctx context.Context, log engine.Log, p topic.Pattern, s engine.State, at *runnelv1.StartPosition) (uint64, error) {
	switch at := at.GetAt().(type) {
	case *runnelv1.StartPosition_NewEvents:
		return s.Head, nil
	case *runnelv1.StartPosition_Earliest:
		return s.Oldest - 1, nil
	case *runnelv1.StartPosition_After:
		return at.After.GetOffset(), log.Check(engine.Position{Epoch: at.After.GetEpoch(), Offset: at.After.GetOffset()})
	case *runnelv1.StartPosition_TimeMs:
		if err := checkTime(&runnelv1.StartPosition{At: at}); err != nil {
			return 0, err
		}
		return log.BeforeTime(ctx, at.TimeMs)
	case *runnelv1.StartPosition_LastN:
		if at.LastN == 0 {
			return 0, &InvalidError{"start.last_n", "it is 0; ask for at least one event"}
		}
		return log.AfterLast(ctx, p, int(at.LastN), s.Head)
	default:
		return 0, &InvalidError{"start", "it is not one this server knows"}
	}
}

// clockSkew is how far in the future a start time may lie.
const clockSkew = time.Minute

func checkTime(at *runnelv1.StartPosition) error {
	t, ok := at.GetAt().(*runnelv1.StartPosition_TimeMs)
	switch {
	case !ok:
		return nil
	case t.TimeMs < 0:
		return &InvalidError{"start.time_ms", "it is negative"}
	case t.TimeMs > time.Now().Add(clockSkew).UnixMilli():
		return &InvalidError{"start.time_ms", "it lies in the future"}
	}
	return nil
}

// History is a bounded read of the log.
type History struct {
	// Epoch and Start are where it begins: what follows Start is read.
	Epoch string
	Start uint64

	log      engine.Log
	pattern  topic.Pattern
	verbs    []auth.Verb // of which one is needed
	snapshot []uint64
	at, to   uint64
	left     uint64 // events that may still be read
}

// Chunk is a page of a History: encoded events, then perhaps a gap behind them.
type Chunk struct {
	Elements []byte // of Delivery.events
	Gap      *runnelv1.Notice
}

// ReadHistory checks a request and finds where to begin.
func (b *Broker) ReadHistory(ctx context.Context, who Caller, r *runnelv1.ReadHistoryRequest) (*History, error) {
	// The newest event of each topic is what a subscription begins with, too: after a break a client reads the rest of that here.
	verbs := []auth.Verb{auth.History}
	if _, last := r.GetStart().GetAt().(*runnelv1.StartPosition_LastEvent); last {
		verbs = []auth.Verb{auth.Subscribe, auth.History}
	}
	p, log, err := b.pattern(&who, r.GetPattern(), verbs...)
	if err != nil {
		return nil, err
	}
	s := log.State()
	if !s.History {
		return nil, &InvalidError{"pattern", "this namespace keeps no history"}
	}
	h := &History{Epoch: s.Epoch, log: log, pattern: p, verbs: verbs, to: s.Head, left: uint64(r.GetLimit())}
	if r.GetLimit() == 0 {
		h.left = ^uint64(0)
	}
	if r.GetToOffset() > 0 {
		h.to = min(h.to, r.GetToOffset())
	}
	switch at := r.GetStart().GetAt().(type) {
	case nil:
		h.at = s.Oldest - 1
	case *runnelv1.StartPosition_LastEvent:
		h.snapshot, err = log.LastOffsets(ctx, p, h.to, maxSnapshot)
		h.at = h.to
	default:
		h.at, err = b.resolve(ctx, log, p, s, &runnelv1.StartPosition{At: at})
	}
	h.Start = h.at
	return h, err
}

// Next reads on, for somebody who may still do so; nil at the end.
func (h *History) Next(ctx context.Context, access *auth.Access) (*Chunk, error) {
	if err := (&Caller{Access: access}).may(h.pattern, h.verbs...); err != nil {
		return nil, err
	}
	if h.left == 0 {
		return nil, nil
	}
	const page = 64 << 10
	var p engine.Page
	var err error
	switch {
	case len(h.snapshot) > 0:
		p, err = h.log.ReadAt(ctx, h.snapshot, page)
		for len(h.snapshot) > 0 && h.snapshot[0] <= p.Scanned {
			h.snapshot = h.snapshot[1:]
		}
	case h.at < h.to:
		p, err = h.log.Read(ctx, engine.ReadRequest{Pattern: h.pattern, After: h.at, To: h.to, MaxBytes: page, MaxEvents: int(min(h.left, 4096))})
	default:
		return nil, nil
	}
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		gap := &runnelv1.Notice{Kind: runnelv1.NoticeKind_NOTICE_KIND_GAP, From: h.at + 1, To: min(gone.Oldest-1, h.to), Reason: "removed by retention"}
		h.at = gone.Oldest - 1
		return &Chunk{Gap: gap}, nil
	}
	if err != nil {
		return nil, err
	}
	c := &Chunk{}
	if len(p.Damaged) > 0 {
		d := p.Damaged[0]
		n := slices.IndexFunc(p.Events, func(e engine.Event) bool { return e.Offset > d.From })
		if n >= 0 {
			p.Events, p.Scanned = p.Events[:n], d.To
		} else {
			d.To = p.Damaged[len(p.Damaged)-1].To
		}
		c.Gap = &runnelv1.Notice{Kind: runnelv1.NoticeKind_NOTICE_KIND_GAP, From: d.From, To: d.To, Reason: "stored data is damaged"}
	}
	h.at = max(h.at, p.Scanned)
	for _, ev := range p.Events[:min(uint64(len(p.Events)), h.left)] {
		c.Elements = wire.AppendElement(c.Elements, ev.Wire)
		h.left--
		if h.left == 0 {
			h.at = ev.Offset
		}
	}
	return c, nil
}

// Position is how far the read has come.
func (h *History) Position() *runnelv1.Position {
	return &runnelv1.Position{Epoch: h.Epoch, Offset: h.at}
}
