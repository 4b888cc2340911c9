package enginetest

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/history"
	"github.com/runnelhq/runnel/internal/topic"
)

// account keeps the history of one log.
type account struct {
	g   *rig
	rec *history.Recorder

	mu    sync.Mutex
	epoch string // newest that was recorded
}

// account begins the history of a log that is empty.
func (g *rig) account(l engine.Log) *account {
	a := &account{g: g, rec: history.New()}
	rules := history.Rules{Durability: g.f.durability(g.history), DedupWindow: g.cfg.DedupWindow}
	if g.f.External { // what keeps the logs may itself end and begin again, and then knows of ids what is in the logs
		rules.IDsKept, rules.TimesEnd = g.cfg.MaxEvents, true
	}
	a.rec.Namespace(l.Namespace(), rules)
	a.opened(l, history.Opening{})
	return a
}

// opened records the log's new epoch, before anything else is done under it.
func (a *account) opened(l engine.Log, o history.Opening) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := l.State()
	if s.Epoch == a.epoch {
		return // it went on where it was
	}
	o.Epoch = s.Epoch
	if o.Head != history.HeadUnknown {
		o.Head = s.Head
	}
	a.epoch = s.Epoch
	a.rec.Opened(l.Namespace(), o)
}

// now returns the log's epoch. One that is new was begun by a reopening inside the process.
func (a *account) now(l engine.Log) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := l.State(); s.Epoch != a.epoch {
		a.epoch = s.Epoch
		a.rec.Opened(l.Namespace(), history.Opening{
			Epoch: s.Epoch, Head: history.HeadUnknown, Survives: runnelv1.Durability_DURABILITY_DISK,
		})
	}
	return a.epoch
}

// append appends and records the outcomes.
func (a *account) append(l engine.Log, mode engine.AppendMode, entries ...engine.Entry) {
	a.g.Helper()
	if err := a.try(a.g.ctx, l, mode, entries, func() bool { return false }); err != nil {
		a.g.Errorf("append: %v", err)
	}
}

// try appends and records the outcomes. If gone says so afterwards, the answer is as if it never came.
func (a *account) try(ctx context.Context, l engine.Log, mode engine.AppendMode, entries []engine.Entry, gone func() bool) error {
	before := a.now(l)
	results, err := l.Append(ctx, entries, mode)
	// An answer from around a change of epoch cannot be told to be of either.
	lost := gone() || a.now(l) != before
	for i := range entries {
		p := published(&entries[i])
		p.Epoch = before
		switch {
		case lost || err != nil && !refused(err):
			p.Outcome = history.Unknown
		case err != nil || results[i].Err != nil:
			p.Outcome = history.Refused
		default:
			p.Outcome, p.Offset, p.Timestamp = history.Acked, results[i].Offset, results[i].Timestamp
			p.Duplicate, p.Durability = results[i].Duplicate, l.State().Durability
		}
		a.rec.Publish(p)
	}
	if lost {
		return errLost
	}
	return err
}

var errLost = errors.New("the answer is lost")

// refused reports whether an error of Append means that nothing is stored.
func refused(err error) bool {
	return errors.Is(err, engine.ErrStorageFull) || errors.Is(err, engine.ErrClosed) || errors.Is(err, engine.ErrUnavailable)
}

// published reads an entry back from its body.
func published(e *engine.Entry) history.Publish {
	m := new(runnelv1.Event)
	if err := proto.Unmarshal(e.Body, m); err != nil {
		panic(err) // the suite made it
	}
	return history.Publish{
		Topic: e.Topic.String(), ID: e.ID, Payload: m.GetPayload(), Conditional: e.Conditional, Expected: e.Expected,
	}
}

// event records an event that a subscriber got.
func (a *account) event(sub *history.Subscriber, ev engine.Event) {
	m := new(runnelv1.Event)
	if err := proto.Unmarshal(ev.Wire, m); err != nil {
		a.g.Errorf("offset %d: %v", ev.Offset, err)
		return
	}
	if a.g.history != engine.HistoryNone && m.GetOffset() != ev.Offset || m.GetTopic() != ev.Topic.String() || m.GetTimestamp() != ev.Timestamp {
		a.g.Errorf("offset %d of %s (time %d) is encoded as %v", ev.Offset, ev.Topic, ev.Timestamp, m)
	}
	sub.Event(ev.Offset, ev.Timestamp, m.GetTopic(), m.GetEventId(), m.GetPayload())
}

// page records what a subscriber got from a page: events, and gaps where something is damaged. Matching is left to the
// subscriber's pattern, since a tail brings everything.
func (a *account) page(sub *history.Subscriber, p topic.Pattern, epoch string, page engine.Page) {
	events := page.Events
	for _, gap := range page.Damaged {
		n := 0
		for n < len(events) && events[n].Offset < gap.From {
			n++
		}
		a.events(sub, p, events[:n])
		sub.Notice(runnelv1.NoticeKind_NOTICE_KIND_GAP, gap.From, gap.To, 0)
		events = events[n:]
	}
	a.events(sub, p, events)
	sub.Bookmark(history.Position{Epoch: epoch, Offset: page.Scanned})
}

func (a *account) events(sub *history.Subscriber, p topic.Pattern, events []engine.Event) {
	for _, ev := range events {
		if p.Match(ev.Topic) {
			a.event(sub, ev)
		}
	}
}

// readAll reads a pattern from the oldest event to the head, as a subscriber would.
func (a *account) readAll(l engine.Log, sub *history.Subscriber, p topic.Pattern) {
	s := l.State()
	at := s.Oldest - 1
	sub.Subscribed(history.Position{Epoch: s.Epoch, Offset: at})
	for at < s.Head {
		page, err := l.Read(a.g.ctx, engine.ReadRequest{Pattern: p, After: at, MaxEvents: 7})
		var gone *engine.PositionGoneError
		switch {
		case errors.As(err, &gone) && gone.Oldest > at+1:
			sub.Notice(runnelv1.NoticeKind_NOTICE_KIND_GAP, at+1, gone.Oldest-1, 0)
			at = gone.Oldest - 1
			continue
		case err != nil:
			a.g.Errorf("%s: read after %d: %v", p, at, err)
			return
		case page.Scanned <= at:
			a.g.Errorf("%s: a read after %d got to %d, and the head is %d", p, at, page.Scanned, s.Head)
			return
		}
		a.page(sub, p, s.Epoch, page)
		at = page.Scanned
	}
	sub.Complete(at)
}

// judge ends the history.
func (a *account) judge(l engine.Log) {
	a.g.Helper()
	a.rec.Trimmed(l.Namespace(), l.State().Oldest)
	for _, v := range a.rec.Check() {
		a.g.Errorf("%v", v)
	}
}
