package runnel

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Event is one event of a topic. It is the application's to keep and, but for Payload's bytes beyond its length, to change; small
// payloads and ids share memory with those of a few other events, 4 KiB at most.
type Event struct {
	Topic       string
	ID          string
	Payload     []byte
	Position    Position // offset 0 where the namespace keeps no history
	Time        time.Time
	Key         string
	ContentType string
	Headers     map[string]string
	Publisher   string
}

func eventOf(e *runnelv1.Event, epoch string) Event {
	return Event{
		Topic: e.GetTopic(), ID: e.GetEventId(), Payload: e.GetPayload(), Position: Position{epoch, e.GetOffset()},
		Time: time.UnixMilli(e.GetTimestamp()), Key: e.GetKey(), ContentType: e.GetContentType(), Headers: e.GetHeaders(),
		Publisher: e.GetPublisher(),
	}
}

// HistoryOption bounds a History.
type HistoryOption func(*runnelv1.ReadHistoryRequest)

// Begin says where to begin; default Earliest.
func Begin(s Start) HistoryOption {
	return func(r *runnelv1.ReadHistoryRequest) { r.Start = s.at }
}

// To ends behind an offset, inclusive; default the newest event there is now.
func To(offset uint64) HistoryOption {
	return func(r *runnelv1.ReadHistoryRequest) { r.ToOffset = offset }
}

// Limit ends after a number of events; 0: no limit.
func Limit(n uint32) HistoryOption { return func(r *runnelv1.ReadHistoryRequest) { r.Limit = n } }

// History reads retained events in offset order and ends at the head. A broken connection is resumed where it broke. What is gone
// is yielded as an *Error with its Notice set, and the read goes on; any other error ends it.
func (c *Client) History(ctx context.Context, pattern string, opts ...HistoryOption) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r := &runnelv1.ReadHistoryRequest{Pattern: pattern}
		for _, set := range opts {
			set(r)
		}
		h := history{c: c, r: r, yield: yield}
		var b retry
		deadline := time.Now().Add(c.o.connectTimeout)
		for {
			err := h.read(ctx)
			if err == nil || h.stopped || h.done {
				return
			}
			if h.progress {
				h.progress = false
				b.reset()
				deadline = time.Now().Add(c.o.connectTimeout)
			}
			if c.unauthenticated(err) && h.refused != h.token {
				h.refused = h.token
				continue
			}
			// A snapshot of newest events is not a range that could be resumed.
			if !passing(err) || time.Now().After(deadline) || (h.started && (Start{h.r.GetStart()}).last()) {
				yield(Event{}, err)
				return
			}
			if err := b.wait(ctx, retryAfter(err)); err != nil {
				yield(Event{}, err)
				return
			}
		}
	}
}

// history is a read across connections.
type history struct {
	c        *Client
	r        *runnelv1.ReadHistoryRequest
	yield    func(Event, error) bool
	epoch    string
	started  bool
	own      bool // r.Start was made here, so it may be changed
	progress bool
	token    string // in use
	refused  string // not taken by the server
	stopped  bool   // the application wants no more
	done     bool   // all that was asked for has come
}

func (h *history) read(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, token, err := h.c.outgoing(ctx, h.refused)
	if err != nil {
		return err
	}
	h.token = token
	l := h.c.use()
	defer h.c.done(l)
	ch, err := h.c.stream(l)
	if err != nil {
		return err
	}
	defer h.c.left(l, ch)
	stream, err := ch.api.ReadHistory(out, h.r)
	if err != nil {
		return wrap(ctx, err)
	}
	var m response
	for {
		err := stream.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wrap(ctx, err)
		}
		h.progress = true
		if !h.controlled(m.controls) || !h.delivered(m.deliveries) {
			h.stopped = true
			return nil
		}
		if h.done {
			return nil
		}
	}
}

func (h *history) controlled(list []*runnelv1.Control) bool {
	for _, c := range list {
		if s := c.GetSubscribed(); s != nil {
			h.epoch = s.GetPosition().GetEpoch()
			if !(Start{h.r.GetStart()}).last() {
				h.resumeAt(s.GetPosition().GetOffset())
			}
		}
		if n := c.GetNotice(); n != nil {
			h.resumeAt(n.GetTo())
			if !h.yield(Event{}, noticeError(n)) {
				return false
			}
		}
	}
	return true
}

func (h *history) delivered(list []delivery) bool {
	for _, d := range list {
		for _, e := range d.events {
			h.started = true
			if !(Start{h.r.GetStart()}).last() {
				h.resumeAt(e.Position.Offset)
			}
			e.Position.Epoch = h.epoch
			if h.r.GetLimit() > 0 {
				h.r.Limit-- // what a resumed read still has to bring
				h.done = h.r.Limit == 0
			}
			if !h.yield(e, nil) {
				return false
			}
		}
	}
	return true
}

// resumeAt notes where a read that breaks would go on. The request is changed in place: this happens for each event.
func (h *history) resumeAt(offset uint64) {
	if at, ok := h.r.GetStart().GetAt().(*runnelv1.StartPosition_After); ok && h.own {
		at.After.Epoch, at.After.Offset = h.epoch, offset
		return
	}
	h.own = true
	h.r.Start = After(Position{h.epoch, offset}).at
}

func noticeError(n *runnelv1.Notice) *Error {
	const prefix = len("NOTICE_KIND_")
	return &Error{FromServer: true, Notice: &Notice{
		Kind: n.GetKind().String()[prefix:], From: n.GetFrom(), To: n.GetTo(), Count: n.GetCount(), Reason: n.GetReason(),
	}}
}
