package enginetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// patience is how long a case waits for what never comes, unless the factory says otherwise.
const patience = time.Minute

// namespace is the one that cases use; every other name but unknown works too. beside is kept the other way: on disk where
// the case is about os, and the reverse.
const (
	namespace = "n"
	beside    = "beside"
	unknown   = "unknown"
)

// rig is what a case works with: storage, the engine opened on it, and a clock.
type rig struct {
	TB
	f       Factory
	history engine.History
	ctx     context.Context
	clock   *clock
	storage Storage
	cfg     engine.Config
	eng     engine.Engine
	// unconfigured is a namespace that the next engine does not know.
	unconfigured string
}

func runCase(t TB, f Factory, h engine.History, c testCase) {
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(f.Patience, patience))
	g := &rig{TB: t, f: f, history: h, ctx: ctx, clock: newClock(f.Clock), storage: f.Storage(t)}
	t.Cleanup(func() {
		g.close()
		cancel()
		left := goleak.Find
		if f.Leaks != nil {
			left = func(...goleak.Option) error { return f.Leaks() }
		}
		if err := left(before); err != nil {
			t.Errorf("after Close goroutines are left: %v", err)
		}
	})
	c.run(g)
}

// open opens an engine, with one configuration for all namespaces, and the log of namespace. Without a deduplication window
// in cfg it is two minutes.
func (g *rig) open(cfg engine.Config) engine.Log {
	g.Helper()
	cfg.History = g.history
	if cfg.DedupWindow == 0 {
		cfg.DedupWindow = 2 * time.Minute
	}
	if cfg.DedupIDs == 0 {
		cfg.DedupIDs = 1 << 20
	}
	g.cfg = cfg
	g.reach("open", func() (err error) {
		g.eng, err = g.storage.Open(Options{
			Namespace: func(name string) (engine.Config, bool) {
				if name == beside {
					return engine.Config{History: g.other()}, true
				}
				return cfg, name != unknown && name != g.unconfigured
			},
			Now: g.clock.now,
		})
		return err
	})
	return g.log(namespace)
}

// reach does something that must succeed; with storage that is disturbed, after a while.
func (g *rig) reach(what string, f func() error) {
	g.Helper()
	err := f()
	if err != nil && g.storage.Disturb != nil {
		g.eventually(what, func() bool { err = f(); return err == nil })
	}
	if err != nil {
		g.Fatalf("%s: %v", what, err)
	}
}

// other is the history of namespace beside: one that shares storage with the case's own, if there is one.
func (g *rig) other() engine.History {
	for _, h := range durable {
		if h != g.history && slices.Contains(durable, g.history) && slices.Contains(g.f.Histories, h) {
			return h
		}
	}
	return g.history
}

func (g *rig) log(name string) engine.Log {
	g.Helper()
	var l engine.Log
	g.reach(fmt.Sprintf("log %q", name), func() (err error) {
		l, err = g.eng.Log(name)
		return err
	})
	return l
}

func (g *rig) close() {
	if g.eng == nil {
		return
	}
	if err := g.eng.Close(); err != nil {
		g.Errorf("close: %v", err)
	}
	g.eng = nil
}

// restart closes the engine and opens it again on the same storage.
func (g *rig) restart() engine.Log {
	g.Helper()
	g.close()
	return g.open(g.cfg)
}

// sameEpoch reports whether the epoch is as it must be after a restart: the same where logs live outside, else another.
func (g *rig) sameEpoch(before, after engine.State) bool {
	return (before.Epoch == after.Epoch) == g.f.External
}

// crash goes on with what a crash leaves.
func (g *rig) crash(unsynced int) engine.Log {
	g.Helper()
	after := g.storage.Crash(unsynced, newRand(1))
	g.close()
	g.storage = after
	return g.open(g.cfg)
}

// eventually waits for a condition that nothing announces.
func (g *rig) eventually(what string, ok func() bool) {
	g.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			g.Fatalf("%s: it never happened", what)
		}
	}
}

// clock is a clock that tests set, or the real one.
type clock struct {
	real bool

	mu sync.Mutex
	t  time.Time
}

func newClock(settable bool) *clock {
	return &clock{real: !settable, t: time.UnixMilli(1_700_000_000_000)}
}

func (c *clock) now() time.Time {
	if c.real {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (g *rig) name(s string) topic.Name {
	g.Helper()
	n, err := topic.Parse(s)
	if err != nil {
		g.Fatalf("%v", err)
	}
	return n
}

func (g *rig) pattern(s string) topic.Pattern {
	g.Helper()
	p, err := topic.ParsePattern(s)
	if err != nil {
		g.Fatalf("%v", err)
	}
	return p
}

const publisher = "tester"

// entry makes an event that is not deduplicated.
func (g *rig) entry(name, id, payload string) engine.Entry {
	g.Helper()
	n := g.name(name)
	r := &runnelv1.PublishRequest{Payload: []byte(payload)}
	return engine.Entry{Topic: n, ID: id, Body: wire.AppendBody(nil, n, id, publisher, r)}
}

// dedup makes an event that is deduplicated by its id.
func (g *rig) dedup(name, id, payload string) engine.Entry {
	g.Helper()
	e := g.entry(name, id, payload)
	e.Dedup = true
	return e
}

// conditional makes an event that expects its topic's newest to be at an offset.
func (g *rig) conditional(name, id string, expected uint64) engine.Entry {
	g.Helper()
	e := g.entry(name, id, id)
	e.Conditional, e.Expected = true, expected
	return e
}

// append appends entries that stand for themselves.
func (g *rig) append(l engine.Log, entries ...engine.Entry) []engine.Result {
	g.Helper()
	return g.appendMode(l, engine.AppendEach, entries...)
}

func (g *rig) appendMode(l engine.Log, mode engine.AppendMode, entries ...engine.Entry) []engine.Result {
	g.Helper()
	res, err := l.Append(g.ctx, entries, mode)
	if err != nil {
		g.Fatalf("append: %v", err)
	}
	if len(res) != len(entries) {
		g.Fatalf("append: %d results for %d entries", len(res), len(entries))
	}
	return res
}

// known is an event that a case has appended.
type known struct {
	offset  uint64
	name    topic.Name
	id      string
	payload string
	time    int64
}

// put appends one event and returns what is known of it.
func (g *rig) put(l engine.Log, name, payload string) known {
	g.Helper()
	id := "id-" + payload[:min(16, len(payload))]
	r := g.append(l, g.entry(name, id, payload))[0]
	if r.Err != nil {
		g.Fatalf("append: %v", r.Err)
	}
	return known{r.Offset, g.name(name), id, payload, r.Timestamp}
}

// fill appends n events on the given topics, in calls of several sizes.
func (g *rig) fill(l engine.Log, n int, topics ...string) []known {
	g.Helper()
	rng := newRand(uint64(n))
	var list []known
	for len(list) < n {
		var batch []engine.Entry
		start := len(list)
		for range min(1+rng.IntN(20), n-start) {
			name, payload := topics[rng.IntN(len(topics))], fmt.Sprint(len(list))
			k := known{name: g.name(name), id: "id-" + payload, payload: payload}
			batch = append(batch, g.entry(name, k.id, payload))
			list = append(list, k)
		}
		for i, r := range g.append(l, batch...) {
			list[start+i].offset, list[start+i].time = r.Offset, r.Timestamp
		}
		g.clock.move(time.Duration(rng.IntN(3)) * time.Millisecond)
	}
	return list
}

// check compares an event with what is known of it, in its fields and in its encoding.
func (g *rig) check(ev engine.Event, k known) {
	g.Helper()
	m := new(runnelv1.Event)
	if err := proto.Unmarshal(ev.Wire, m); err != nil {
		g.Fatalf("offset %d: %v", ev.Offset, err)
	}
	if ev.Offset != k.offset || ev.Topic != k.name || ev.Timestamp != k.time {
		g.Errorf("event %d %s (time %d), want %d %s (time %d)", ev.Offset, ev.Topic, ev.Timestamp, k.offset, k.name, k.time)
	}
	if m.GetOffset() != k.offset || m.GetTopic() != k.name.String() || m.GetTimestamp() != k.time ||
		m.GetEventId() != k.id || string(m.GetPayload()) != k.payload || m.GetPublisher() != publisher {
		g.Errorf("offset %d is encoded as %v, want %+v", ev.Offset, m, k)
	}
}

// read reads everything that a request asks for, page by page. Pages must be within their bounds and must go on.
func (g *rig) read(l engine.Log, r engine.ReadRequest) []engine.Event {
	g.Helper()
	to := l.State().Head
	if r.To > 0 {
		to = min(to, r.To)
	}
	var list []engine.Event
	for {
		p, err := l.Read(g.ctx, r)
		if err != nil {
			g.Fatalf("read %+v: %v", r, err)
		}
		g.checkPage(r, p)
		list = append(list, p.Events...)
		if p.Scanned >= to {
			return list
		}
		if p.Scanned <= r.After {
			g.Fatalf("read %+v: the page ends at %d, with more to read", r, p.Scanned)
		}
		r.After = p.Scanned
	}
}

func (g *rig) checkPage(r engine.ReadRequest, p engine.Page) {
	g.Helper()
	if p.Scanned < r.After {
		g.Errorf("read %+v: scanned up to %d", r, p.Scanned)
	}
	if r.MaxEvents > 0 && len(p.Events) > r.MaxEvents {
		g.Errorf("read %+v: %d events", r, len(p.Events))
	}
	if len(p.Damaged) > 0 {
		g.Errorf("read %+v: damaged %v", r, p.Damaged)
	}
	size, before := 0, r.After
	for _, ev := range p.Events {
		if ev.Offset <= before || ev.Offset > p.Scanned || r.To > 0 && ev.Offset > r.To {
			g.Errorf("read %+v, scanned up to %d: offset %d behind %d", r, p.Scanned, ev.Offset, before)
		}
		before = ev.Offset
		size += len(ev.Wire)
	}
	if r.MaxBytes > 0 && len(p.Events) > 1 && size > r.MaxBytes {
		g.Errorf("read %+v: %d events of %d bytes", r, len(p.Events), size)
	}
}

// same compares events with what is known.
func (g *rig) same(what string, got []engine.Event, want []known) {
	g.Helper()
	if len(got) != len(want) {
		g.Errorf("%s: %d events, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		g.check(got[i], want[i])
	}
}

// matching are the known events that match a pattern, in an offset range.
func matching(list []known, p topic.Pattern, after, to uint64) []known {
	var m []known
	for _, k := range list {
		if (p == topic.Pattern{} || p.Match(k.name)) && k.offset > after && k.offset <= to {
			m = append(m, k)
		}
	}
	return m
}
