package session_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/pebbleengine"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

const (
	catchUp    = runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP
	dropOldest = runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST
	conflate   = runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE
	disconnect = runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT
)

// published is an event as the model knows it; its number, from 1, is its offset where history is kept.
type published struct {
	topic topic.Name
	key   string
}

func (p published) conflationKey() string { return p.topic.String() + "\x00" + p.key }

// follower is what the model knows of a subscription, and what came.
type follower struct {
	pattern  topic.Pattern
	policy   runnelv1.OverflowPolicy
	maxLag   uint64
	interval time.Duration
	start    uint64 // everything up to here is not its business
	position uint64 // how far what came reaches; only where history is kept

	delivered []uint64
	dropped   uint64
	conflated uint64
	gaps      []engine.Range
	batch     time.Time // when a batch began, with the newest event then
	newest    uint64
	replayed  bool // something came from the log, which is not paced
	over      bool // unsubscribed
}

// model runs a random life of one session against what must hold at every moment.
type model struct {
	t       *rapid.T
	history bool
	log     engine.Log
	hub     *hub.Hub
	budget  *budget.Budget
	s       *session.Session
	events  []published
	subs    map[uint32]*follower
	lastSub uint32
	blocked bool
	err     error
}

// bubble hides Deadline, which must not be called in a synctest bubble.
type bubble struct{ rapid.TB }

// For random speeds, keys, credits, policies, intervals, windows and budgets: at every position, what matched was delivered,
// dropped, conflated or lies in a gap, and each just once; order is kept; the newest of every key arrives in the end.
func TestAccounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubble{t}, func(t *rapid.T) {
			m := &model{t: t, subs: map[uint32]*follower{}}
			stop := m.open()
			defer stop()
			m.subscribe()
			t.Repeat(map[string]func(*rapid.T){
				"publish":     func(t *rapid.T) { m.t = t; m.publish(rapid.IntRange(1, 60).Draw(t, "n")) },
				"read":        func(t *rapid.T) { m.t = t; m.read(rapid.IntRange(1, 5).Draw(t, "frames")) },
				"readAll":     func(t *rapid.T) { m.t = t; m.read(1 << 20) },
				"block":       func(t *rapid.T) { m.t = t; m.block(rapid.Bool().Draw(t, "blocked")) },
				"wait":        func(t *rapid.T) { m.t = t; m.wait() },
				"credit":      func(t *rapid.T) { m.t = t; m.credit(uint32(rapid.IntRange(1, 50).Draw(t, "credit"))) },
				"subscribe":   func(t *rapid.T) { m.t = t; m.subscribe() },
				"unsubscribe": func(t *rapid.T) { m.t = t; m.unsubscribe() },
			})
			m.t = t
			m.finish()
		})
	})
}

func (m *model) open() (stop func()) {
	t := m.t
	m.history = rapid.Bool().Draw(t, "history")
	cfg := engine.Config{History: engine.HistoryNone}
	if m.history {
		cfg.History = engine.HistoryMemory
		cfg.MaxEvents = rapid.SampledFrom([]uint64{0, 0, 100}).Draw(t, "max_events")
	}
	e, err := pebbleengine.Open(pebbleengine.Options{
		Dir: "data", FS: vfs.NewMem(), Logger: slog.New(slog.DiscardHandler),
		Namespace: func(string) (engine.Config, bool) { return cfg, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	if m.log, err = e.Log("a"); err != nil {
		t.Fatal(err)
	}
	m.budget = budget.New(rapid.SampledFrom([]int64{1 << 30, 1 << 20, 600 << 10}).Draw(t, "budget"))
	m.hub = hub.New(e, hub.Config{
		WindowBytes: rapid.SampledFrom([]int{1 << 10, 8 << 10, 1 << 20}).Draw(t, "window"),
		LatestBytes: rapid.SampledFrom([]int{2 << 10, 64 << 10}).Draw(t, "latest"),
		Budget:      m.budget,
	})
	replayer := session.NewReplayer()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { replayer.Run(ctx, 2) })
	m.s, err = session.New(session.Config{
		MaxSubscriptions: 8, Heartbeat: 15 * time.Second, SendTimeout: time.Hour, Replayer: replayer, Budget: m.budget,
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		m.s.Close()
		cancel()
		group.Wait()
		m.hub.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		for _, k := range budget.Kinds() {
			if n := m.budget.Used(k); n != 0 {
				t.Errorf("%d bytes of %v are still counted at the end", n, k)
			}
		}
	}
}

func (m *model) publish(n int) {
	tp := rapid.SampledFrom([]string{"a.x", "a.y"}).Draw(m.t, "topic")
	size := rapid.SampledFrom([]int{0, 10, 100, 100, 5000}).Draw(m.t, "size")
	keys := rapid.IntRange(0, 30).Draw(m.t, "keys")
	name, err := topic.Parse(tp)
	if err != nil {
		m.t.Fatal(err)
	}
	entries := make([]engine.Entry, n)
	for i := range entries {
		p := published{topic: name}
		if keys > 0 {
			p.key = fmt.Sprint("k", i*i%keys)
		}
		m.events = append(m.events, p)
		id := fmt.Sprint(len(m.events))
		entries[i] = engine.Entry{Topic: name, ID: id, Body: wire.AppendBody(nil, name, id, "p", &runnelv1.PublishRequest{Key: p.key, Payload: make([]byte, size)})}
	}
	if _, err := m.log.Append(context.Background(), entries, engine.AppendEach); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) subscribe() {
	if m.err != nil || len(m.subs) >= 4 {
		return
	}
	policies := []runnelv1.OverflowPolicy{dropOldest, conflate, conflate}
	if m.history {
		policies = append(policies, catchUp, catchUp)
	}
	if len(m.subs) == 0 {
		policies = append(policies, disconnect)
	}
	f := &follower{
		policy: rapid.SampledFrom(policies).Draw(m.t, "policy"),
		maxLag: uint64(rapid.IntRange(1, 30).Draw(m.t, "max_lag")),
		start:  uint64(len(m.events)),
	}
	o := session.Options{
		Policy: f.policy, MaxLag: f.maxLag,
		Credit: uint32(rapid.SampledFrom([]int{0, 1, 7, 100}).Draw(m.t, "credit")),
		MaxAge: rapid.SampledFrom([]time.Duration{0, 0, time.Second}).Draw(m.t, "max_age"),
	}
	if f.policy == conflate {
		f.interval = rapid.SampledFrom([]time.Duration{0, 0, 30 * time.Millisecond, time.Second}).Draw(m.t, "interval")
		o.Interval = f.interval
	}
	var err error
	if f.pattern, err = topic.ParsePattern(rapid.SampledFrom([]string{"a.>", "a.x", "a.*"}).Draw(m.t, "pattern")); err != nil {
		m.t.Fatal(err)
	}
	o.Pattern = f.pattern
	if o.Feed, o.Log, err = m.hub.Open(f.pattern, f.policy == conflate); err != nil {
		m.t.Fatal(err)
	}
	o.State = o.Log.State()
	if s := o.State; m.history && rapid.Bool().Draw(m.t, "past") {
		f.start = s.Oldest - 1 + uint64(rapid.IntRange(0, int(s.Head-s.Oldest+1)).Draw(m.t, "start"))
	}
	o.Start, f.position, f.replayed = f.start, f.start, f.start < o.State.Head
	if o.State.Head != uint64(len(m.events)) {
		m.t.Fatalf("the head is %d after %d events", o.State.Head, len(m.events))
	}
	m.lastSub++
	o.ID = m.lastSub
	switch err := m.s.Subscribe(uint64(o.ID), o); {
	case errors.Is(err, budget.ErrExhausted) || m.s.Err() != nil:
		o.Feed.Close(f.policy == conflate)
	case err != nil:
		m.t.Fatal(err)
	default:
		m.subs[o.ID] = f
	}
}

// ids of the subscriptions that are not over, ascending.
func (m *model) ids() []uint32 {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(m.subs)), func(id uint32) bool { return m.subs[id].over })
}

func (m *model) unsubscribe() {
	ids := m.ids()
	if len(ids) < 2 || m.err != nil {
		return
	}
	id := rapid.SampledFrom(ids).Draw(m.t, "id")
	if err := m.s.Unsubscribe(0, id); err != nil {
		m.t.Fatal(err)
	}
	m.subs[id].over = true
}

func (m *model) block(blocked bool) {
	m.blocked = blocked
	m.s.Blocked(blocked)
}

func (m *model) wait() {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, 40 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second}).Draw(m.t, "wait"))
	synctest.Wait()
}

func (m *model) credit(n uint32) {
	for _, id := range m.ids() {
		m.s.Credit(id, n)
	}
}

// read takes frames as the transport would.
func (m *model) read(frames int) {
	if m.blocked || m.err != nil {
		return
	}
	size := rapid.SampledFrom([]int{100, 1000, 64 << 10}).Draw(m.t, "frame")
	var f session.Frame
	for idle := 0; frames > 0 && idle < 3; {
		if m.err = m.s.Next(&f, size); m.err != nil {
			return
		}
		if f.Bytes == 0 {
			idle++
			synctest.Wait() // pages that are being read, pages being distributed
			continue
		}
		idle = 0
		frames--
		if len(f.Slices) > session.MaxFrameSlices {
			m.t.Fatalf("a frame has %d slices", len(f.Slices))
		}
		var b []byte
		for _, s := range f.Slices {
			b = append(b, s...)
		}
		if len(b) != f.Bytes {
			m.t.Fatalf("a frame of %d bytes says that it has %d", len(b), f.Bytes)
		}
		f.Release()
		r := new(runnelv1.StreamResponse)
		if err := proto.Unmarshal(b, r); err != nil {
			m.t.Fatal(err)
		}
		m.s.Sent()
		m.take(r)
	}
}

// take checks what came.
func (m *model) take(r *runnelv1.StreamResponse) {
	for _, c := range r.GetControls() {
		if n := c.GetNotice(); n != nil {
			m.notice(n)
		}
		if u := c.GetUnsubscribed(); u != nil {
			delete(m.subs, u.GetSubscription())
		}
		if b := c.GetBookmark(); b != nil {
			if f := m.subs[b.GetSubscription()]; f != nil {
				f.position = b.GetPosition().GetOffset()
				m.balance(f, "at a bookmark")
			}
		}
	}
	for _, d := range r.GetDeliveries() {
		f := m.subs[d.GetSubscription()]
		if f == nil {
			m.t.Fatalf("events for subscription %d, which has ended", d.GetSubscription())
		}
		for _, ev := range d.GetEvents() {
			m.event(f, ev)
		}
		m.balance(f, "behind a delivery")
	}
}

func (m *model) event(f *follower, ev *runnelv1.Event) {
	var n uint64
	if _, err := fmt.Sscan(ev.GetEventId(), &n); err != nil {
		m.t.Fatal(err)
	}
	if m.history != (ev.GetOffset() == n) {
		m.t.Fatalf("event %d has offset %d", n, ev.GetOffset())
	}
	last := f.start
	if len(f.delivered) > 0 {
		last = f.delivered[len(f.delivered)-1]
	}
	if n <= last || !f.pattern.Match(m.events[n-1].topic) {
		m.t.Fatalf("event %d came to a %v subscription of %v behind event %d", n, f.policy, f.pattern, last)
	}
	if f.interval > 0 && !f.replayed {
		if f.batch.IsZero() || time.Since(f.batch) >= f.interval {
			f.batch, f.newest = time.Now(), uint64(len(m.events))
		}
		if n > f.newest {
			m.t.Fatalf("event %d came %v behind the beginning of a batch that ended with event %d", n, time.Since(f.batch), f.newest)
		}
	}
	f.delivered = append(f.delivered, n)
	f.position = n
}

func (m *model) notice(n *runnelv1.Notice) {
	f := m.subs[n.GetSubscription()]
	if f == nil {
		m.t.Fatalf("a notice for subscription %d, which has ended: %v", n.GetSubscription(), n)
	}
	if m.history && n.GetCount() > 0 && (n.GetFrom() <= f.position || n.GetTo() < n.GetFrom()) {
		m.t.Fatalf("at %d: %v", f.position, n)
	}
	switch n.GetKind() {
	case runnelv1.NoticeKind_NOTICE_KIND_DROPPED:
		f.dropped += n.GetCount()
		if f.policy == catchUp || f.policy == conflate && m.history {
			m.t.Fatalf("%v dropped: %v", f.policy, n)
		}
		if m.history {
			f.position = n.GetTo()
			m.balance(f, "behind DROPPED")
		}
	case runnelv1.NoticeKind_NOTICE_KIND_CONFLATED:
		f.conflated += n.GetCount()
		if f.policy != conflate {
			m.t.Fatalf("%v conflated: %v", f.policy, n)
		}
	case runnelv1.NoticeKind_NOTICE_KIND_BEHIND:
		f.replayed = true
	case runnelv1.NoticeKind_NOTICE_KIND_GAP:
		if n.GetTo() >= m.log.State().Oldest || n.GetFrom() != f.position+1 && f.policy == catchUp && n.GetFrom() <= f.position {
			m.t.Fatalf("at %d, with %+v: %v", f.position, m.log.State(), n)
		}
		f.gaps = append(f.gaps, engine.Range{From: n.GetFrom(), To: n.GetTo()})
		f.position = n.GetTo()
		m.balance(f, "behind GAP")
	}
}

// matched counts the events in (from, to] that match; gap says which of them a gap covers.
func (f *follower) matched(m *model, to uint64) (all, gap uint64) {
	for n := f.start + 1; n <= to; n++ {
		if !f.pattern.Match(m.events[n-1].topic) {
			continue
		}
		all++
		for _, g := range f.gaps {
			if g.From <= n && n <= g.To {
				gap++
				break
			}
		}
	}
	return all, gap
}

// balance checks the identity at the follower's position. Where nothing is kept, notices name no range, and only the end counts.
func (m *model) balance(f *follower, where string) {
	if m.history {
		m.balanceAt(f, f.position, where)
	}
}

func (m *model) balanceAt(f *follower, position uint64, where string) {
	all, gap := f.matched(m, position)
	if got := uint64(len(f.delivered)) + f.dropped + f.conflated + gap; got != all {
		m.t.Fatalf("%s, %v of %v from %d to %d: %d delivered + %d dropped + %d conflated + %d in gaps = %d, but %d matched",
			where, f.policy, f.pattern, f.start, position, len(f.delivered), f.dropped, f.conflated, gap, got, all)
	}
}

// finish lets everything flow and looks at the end.
func (m *model) finish() {
	m.block(false)
	for range 20 {
		m.credit(1 << 20)
		m.read(1 << 20)
		time.Sleep(2 * time.Second) // intervals, and pages that waited for memory
		synctest.Wait()
	}
	if m.err != nil {
		m.ended()
		return
	}
	for id, f := range m.subs {
		if f.over {
			m.t.Fatalf("Unsubscribed did not come for %d", id)
		}
		m.balanceAt(f, uint64(len(m.events)), "in the end")
		if f.policy == conflate && f.dropped == 0 {
			m.newestCame(f)
		}
	}
}

// newestCame checks that the newest event of every key arrived.
func (m *model) newestCame(f *follower) {
	newest := map[string]uint64{}
	for n := f.start + 1; n <= uint64(len(m.events)); n++ {
		if p := m.events[n-1]; f.pattern.Match(p.topic) {
			newest[p.conflationKey()] = n
		}
	}
	for _, n := range f.delivered {
		if key := m.events[n-1].conflationKey(); newest[key] == n {
			delete(newest, key)
		}
	}
	for _, g := range f.gaps {
		for key, n := range newest {
			if g.From <= n && n <= g.To {
				delete(newest, key)
			}
		}
	}
	if len(newest) > 0 {
		m.t.Fatalf("the newest of these keys did not come: %v", newest)
	}
}

// ended checks why and where a session with policy DISCONNECT was ended.
func (m *model) ended() {
	var slow *session.SlowConsumerError
	if !errors.As(m.err, &slow) {
		m.t.Fatal(m.err)
	}
	f := m.subs[slow.Subscription]
	short := strings.Contains(slow.Reason, "memory is short")
	if f == nil {
		return // it was unsubscribed behind the end of the session
	}
	if f.policy != disconnect && !short {
		m.t.Fatalf("%v, which is %+v", m.err, f)
	}
	if m.history {
		m.balanceAt(f, slow.Offset, "at the position of the end")
	}
}
