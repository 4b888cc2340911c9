// Package broker holds the rules: what names, events and subscriptions are valid, and what publishing and subscribing
// mean in terms of the engine, the hub and a session. Errors are its own types, the engine's and the session's; an edge
// translates them. Safe for concurrent use.
package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/busy"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/id"
	"github.com/runnelhq/runnel/internal/limit"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// Rules are a namespace's rules for subscriptions.
type Rules struct {
	Overflow runnelv1.OverflowPolicy   // used where a subscription names none
	Allowed  []runnelv1.OverflowPolicy // empty: all
	MaxLag   uint64                    // used where a subscription names none
	// MaxLagAge is the max_age_ms used where a subscription names none; 0: no limit.
	MaxLagAge time.Duration
}

// Config bounds what clients may do. All fields but Published, Committed, Busy, Traced and Trace are required.
type Config struct {
	MaxPayload       int
	MaxHeaders       int
	MaxSubscriptions int
	Rules            func(namespace string) Rules
	// Published, if set, is called with what became of events: one of the words of Results. Committed, if set, with how long a commit took.
	Published func(result string, events int)
	Committed func(durability string, took time.Duration)
	// Busy, if set, counts the events that were stored, with the bytes of each as it is encoded, but for its timestamp and offset.
	Busy *busy.Counter
	// Trace, if set, is called for each event that was stored and that Traced picks, with when it was accepted, and when its commit began and ended.
	Traced func(*runnelv1.PublishRequest) bool
	Trace  func(Trace)
}

// Trace is what became of one event.
type Trace struct {
	Request                *runnelv1.PublishRequest
	Response               *runnelv1.PublishResponse
	By                     Caller
	Accepted, Began, Ended time.Time // the last two of its commit
}

// maxField is the most bytes of an event id, key or content type.
const maxField = 255

// maxSnapshot is the most topics a last_event start may match.
const maxSnapshot = 1 << 20

// Caller is who asks.
type Caller struct {
	Client string        // id: the publisher of its events
	Access *auth.Access  // nil: it may do everything
	Limits *limit.Client // nil: none
	Origin Origin
}

// Origin says by which call or session somebody asks: "request" or "session", and its id, as in the log.
type Origin interface{ Origin() (kind, id string) }

// may is nil if the caller may do one of the verbs on all that p matches. It comes before any look at what exists.
func (c *Caller) may(p topic.Pattern, verbs ...auth.Verb) error {
	for _, v := range verbs {
		if c.Access.Allowed(v, p) {
			return nil
		}
	}
	return Forbidden(verbs[len(verbs)-1], p)
}

// Forbidden is the refusal of a verb on a pattern.
func Forbidden(v auth.Verb, p topic.Pattern) *ForbiddenError {
	words := map[auth.Verb]string{auth.Publish: "publish to", auth.Subscribe: "subscribe to", auth.History: "read the history of", auth.Admin: "administer"}
	return &ForbiddenError{words[v], p.String()}
}

// Broker applies the rules.
type Broker struct {
	engine engine.Engine
	hub    *hub.Hub
	cfg    Config
	ids    *id.Source
}

// New returns a Broker on an engine and the hub that follows it.
func New(e engine.Engine, h *hub.Hub, cfg Config) *Broker {
	return &Broker{engine: e, hub: h, cfg: cfg, ids: id.NewSource()}
}

// Limits is what a client is told in Welcome.
func (b *Broker) Limits() *runnelv1.Limits {
	return &runnelv1.Limits{
		MaxPayloadBytes: uint32(b.cfg.MaxPayload), MaxHeadersBytes: uint32(b.cfg.MaxHeaders),
		MaxSubscriptions: uint32(b.cfg.MaxSubscriptions),
	}
}

// Outcome is the fate of one publish: exactly one field is set.
type Outcome struct {
	Response *runnelv1.PublishResponse
	Err      error
}

// Publish appends events in the order given, as who, and returns one Outcome each. ordered: behind the first
// failure nothing is stored, and the outcomes hold engine.ErrSkipped.
func (b *Broker) Publish(ctx context.Context, who Caller, requests []*runnelv1.PublishRequest, ordered bool) []Outcome {
	if b.cfg.Trace == nil {
		out := b.publish(ctx, who, requests, ordered, nil)
		b.count(out)
		return out
	}
	accepted := time.Now()
	out := b.publish(ctx, who, requests, ordered, func(i int, res *runnelv1.PublishResponse, began, ended time.Time) {
		if b.cfg.Traced(requests[i]) {
			b.cfg.Trace(Trace{requests[i], res, who, accepted, began, ended})
		}
	})
	b.count(out)
	return out
}

// stored is told of the events of a run that were stored: their place in the run, and when their commit began and ended. It may be nil.
type stored func(i int, res *runnelv1.PublishResponse, began, ended time.Time)

func (b *Broker) publish(ctx context.Context, who Caller, requests []*runnelv1.PublishRequest, ordered bool, tell stored) []Outcome {
	out := make([]Outcome, len(requests))
	entries := make([]engine.Entry, 0, len(requests))
	for start := 0; start < len(requests); {
		// A run of valid requests to one namespace is one append.
		entries = entries[:0]
		end := start
		var bad error
		for ; end < len(requests); end++ {
			en, err := b.entry(&who, requests[end])
			if err != nil {
				bad = err
				break
			}
			if len(entries) > 0 && en.Topic.Namespace() != entries[0].Topic.Namespace() {
				break
			}
			entries = append(entries, en)
		}
		ok := b.appendRun(ctx, &who, entries, ordered, out[start:end], start, tell)
		start = end
		if bad != nil && ok {
			out[start].Err = bad
			start++
			ok = !ordered
		}
		if !ok {
			for i := start; i < len(out); i++ {
				out[i].Err = engine.ErrSkipped
			}
			return out
		}
	}
	return out
}

// appendRun appends entries of one namespace, the first of which is the request at place at; false if ordered and one of them failed.
func (b *Broker) appendRun(ctx context.Context, who *Caller, entries []engine.Entry, ordered bool, out []Outcome, at int, tell stored) bool {
	if len(entries) == 0 {
		return true
	}
	fail := func(err error) bool {
		for i := range out {
			out[i].Err = err
		}
		return !ordered
	}
	namespace := entries[0].Topic.Namespace()
	log, err := b.engine.Log(namespace)
	if err != nil {
		return fail(err)
	}
	// What a limit refuses is refused with all that is behind it, or the order would be lost.
	ok := true
	if n, err := b.within(who, entries); err != nil {
		for i := range out[n:] {
			out[n+i].Err = err
		}
		if entries, out, ok = entries[:n], out[:n], !ordered; n == 0 {
			return ok
		}
	}
	mode := engine.AppendEach
	if ordered {
		mode = engine.AppendOrdered
	}
	// The engine keeps the entries only until Append returns, unless ctx ends it.
	began := time.Now()
	results, err := log.Append(ctx, slices.Clone(entries), mode)
	for errors.Is(err, engine.ErrDeleted) { // nothing was stored: it goes to the namespace's next log
		if log, err = b.engine.Log(namespace); err == nil {
			results, err = log.Append(ctx, slices.Clone(entries), mode)
		}
	}
	if err != nil {
		return fail(err)
	}
	state, ended := log.State(), time.Now()
	if b.cfg.Committed != nil {
		b.cfg.Committed(durabilities[state.Durability], ended.Sub(began))
	}
	b.countTopics(ended, entries, results)
	for i, r := range results {
		if r.Err != nil {
			out[i].Err = r.Err
			ok = !ordered
			continue
		}
		out[i].Response = &runnelv1.PublishResponse{
			EventId: entries[i].ID, Offset: r.Offset, Timestamp: r.Timestamp, Duplicate: r.Duplicate,
			Durability: state.Durability, Epoch: state.Epoch,
		}
		if tell != nil {
			tell(at+i, out[i].Response, began, ended)
		}
	}
	return ok
}

// within returns how many of the entries, which are of one namespace, are within the caller's limits, and why the next is not.
func (b *Broker) within(who *Caller, entries []engine.Entry) (int, error) {
	if who.Limits == nil {
		return len(entries), nil
	}
	for i := range entries {
		if err := who.Limits.Publish(entries[i].Topic.Namespace(), len(entries[i].Body)); err != nil {
			return i, err
		}
	}
	return len(entries), nil
}

// entry checks a request and encodes its event.
func (b *Broker) entry(who *Caller, r *runnelv1.PublishRequest) (engine.Entry, error) {
	n, err := topic.Parse(r.GetTopic())
	if err != nil {
		return engine.Entry{}, &InvalidError{"topic", err.Error()}
	}
	if err := who.may(n.Pattern(), auth.Publish); err != nil {
		return engine.Entry{}, err
	}
	if size := len(r.GetPayload()); size > b.cfg.MaxPayload {
		return engine.Entry{}, &TooLargeError{"payload", size, b.cfg.MaxPayload}
	}
	for _, f := range []struct{ name, value string }{
		{"event_id", r.GetEventId()}, {"key", r.GetKey()}, {"content_type", r.GetContentType()},
	} {
		if len(f.value) > maxField {
			return engine.Entry{}, &InvalidError{f.name, fmt.Sprintf("it is longer than %d bytes", maxField)}
		}
		if !utf8.ValidString(f.value) {
			return engine.Entry{}, &InvalidError{f.name, "it is not valid UTF-8"}
		}
	}
	size := 0
	for name, value := range r.GetHeaders() {
		if err := checkHeader(name, value); err != nil {
			return engine.Entry{}, err
		}
		size += len(name) + len(value)
	}
	if size > b.cfg.MaxHeaders {
		return engine.Entry{}, &TooLargeError{"event's headers", size, b.cfg.MaxHeaders}
	}
	en := engine.Entry{
		Topic: n, ID: r.GetEventId(), Dedup: r.GetEventId() != "",
		Expected: r.GetExpectedOffset(), Conditional: r.ExpectedOffset != nil,
	}
	if !en.Dedup {
		if en.ID, err = b.ids.New(); err != nil {
			return engine.Entry{}, err
		}
	}
	en.Body = wire.AppendBody(make([]byte, 0, wire.BodySize(n, en.ID, who.Client, r)+wire.MaxTrailer), n, en.ID, who.Client, r)
	return en, nil
}

// reservedHeader begins the names of headers that an engine may set; a client that could set them would speak to the engine.
const reservedHeader = "nats-"

// checkHeader refuses names and values that could mean something to whoever passes them on in lines.
func checkHeader(name, value string) error {
	switch {
	case name == "":
		return &InvalidError{"headers", "a name is empty"}
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }):
		return &InvalidError{"headers", "a name holds something other than printable ASCII characters without spaces and colons"}
	case len(name) >= len(reservedHeader) && strings.EqualFold(name[:len(reservedHeader)], reservedHeader):
		return &InvalidError{"headers", "names that begin with Nats- are reserved"}
	case !utf8.ValidString(value) || strings.ContainsAny(value, "\x00\r\n"):
		return &InvalidError{"headers", "a value holds a line break or NUL, or is not UTF-8"}
	}
	return nil
}

// Topic describes one topic.
func (b *Broker) Topic(ctx context.Context, who Caller, name string) (*runnelv1.Topic, error) {
	n, err := topic.Parse(name)
	if err != nil {
		return nil, &InvalidError{"topic", err.Error()}
	}
	if err := who.may(n.Pattern(), auth.Subscribe, auth.History); err != nil {
		return nil, err
	}
	log, err := b.engine.Log(n.Namespace())
	if err != nil {
		return nil, err
	}
	t, _, err := log.Topic(ctx, n)
	if err != nil {
		return nil, err
	}
	t.Topic = n
	return describe(t, log.State())
}

// Page sizes of Topics.
const (
	defaultPage = 100
	maxPage     = 1000
)

// Topics lists a page of the topics that match a pattern.
func (b *Broker) Topics(ctx context.Context, who Caller, r *runnelv1.ListTopicsRequest) (*runnelv1.ListTopicsResponse, error) {
	p, log, err := b.pattern(&who, r.GetPattern(), auth.Subscribe, auth.History)
	if err != nil {
		return nil, err
	}
	after := r.GetPageToken()
	if after != "" {
		if _, err := topic.Parse(after); err != nil {
			return nil, &InvalidError{"page_token", "it is not one that this server gave out"}
		}
	}
	size := int(r.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	list, more, err := log.Topics(ctx, p, after, min(size, maxPage))
	if err != nil {
		return nil, err
	}
	res := &runnelv1.ListTopicsResponse{}
	for _, t := range list {
		d, err := describe(t, log.State())
		if err != nil {
			return nil, err
		}
		res.Topics = append(res.Topics, d)
	}
	if more && len(list) > 0 {
		res.NextPageToken = list[len(list)-1].Topic.String()
	}
	return res, nil
}

// pattern reads a request's pattern and finds its log, for somebody who may do one of the verbs there.
func (b *Broker) pattern(who *Caller, s string, verbs ...auth.Verb) (topic.Pattern, engine.Log, error) {
	p, err := topic.ParsePattern(s)
	if err != nil {
		return p, nil, &InvalidError{"pattern", err.Error()}
	}
	if err := who.may(p, verbs...); err != nil {
		return p, nil, err
	}
	log, err := b.engine.Log(p.Namespace())
	return p, log, err
}
