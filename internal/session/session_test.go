package session_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/pebbleengine"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an engine, a hub and a replayer.
type world struct {
	t        testing.TB
	engine   engine.Engine
	log      engine.Log
	hub      *hub.Hub
	replayer *session.Replayer
}

func newWorld(t testing.TB, cfg engine.Config, windowBytes int) *world {
	e, err := pebbleengine.Open(pebbleengine.Options{
		Dir: "data", FS: vfs.NewMem(), Logger: slog.New(slog.DiscardHandler),
		Namespace: func(string) (engine.Config, bool) { return cfg, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, engine: e, hub: hub.New(e, hub.Config{WindowBytes: windowBytes}), replayer: session.NewReplayer()}
	if w.log, err = e.Log("a"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { w.replayer.Run(ctx, 2) })
	t.Cleanup(func() {
		stop()
		group.Wait()
		w.hub.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) publish(name string, n int) {
	parsed, err := topic.Parse(name)
	if err != nil {
		w.t.Error(err)
		return
	}
	for range n {
		body := wire.AppendBody(nil, parsed, "id", "p", &runnelv1.PublishRequest{Payload: make([]byte, 40)})
		if _, err := w.log.Append(context.Background(), []engine.Entry{{Topic: parsed, Body: body}}, engine.AppendEach); err != nil {
			w.t.Error(err)
			return
		}
	}
}

func (w *world) session() *session.Session {
	w.t.Helper()
	return newSession(w.t, session.Config{
		MaxSubscriptions: 100, Heartbeat: 15 * time.Second, SendTimeout: 30 * time.Second, Replayer: w.replayer,
	})
}

func newSession(t testing.TB, cfg session.Config) *session.Session {
	t.Helper()
	s, err := session.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (w *world) subscribe(s *session.Session, pattern string, start uint64, o session.Options) {
	w.t.Helper()
	p, err := topic.ParsePattern(pattern)
	if err != nil {
		w.t.Fatal(err)
	}
	o.Pattern = p
	if o.Policy == 0 {
		o.Policy = runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP
	}
	if o.Feed, o.Log, err = w.hub.Open(p, o.Policy == runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE); err != nil {
		w.t.Fatal(err)
	}
	o.State = o.Log.State()
	if o.Start = start; start == latest {
		o.Start = o.State.Head
	}
	if err := s.Subscribe(0, o); err != nil {
		w.t.Fatal(err)
	}
}

const latest = ^uint64(0)

// next waits for a frame, decodes it and says that it was sent.
func (w *world) next(s *session.Session) (*runnelv1.StreamResponse, error) {
	for {
		f := new(session.Frame)
		err := s.Next(f, 4<<10)
		if err != nil {
			return nil, err
		}
		if f.Bytes == 0 {
			<-s.Ready()
			continue
		}
		var b []byte
		for _, slice := range f.Slices {
			b = append(b, slice...)
		}
		m := new(runnelv1.StreamResponse)
		if err := proto.Unmarshal(b, m); err != nil {
			w.t.Fatal(err)
		}
		s.Sent()
		return m, nil
	}
}

// The seam between replay and live: subscriptions that start anywhere, while publishers race and a window of a few events
// pushes readers back into the log again and again, see every event once and in order.
func TestSeam(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 2<<10)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	for round := range rounds {
		const publishers, each = 3, 20
		begin := w.log.State().Head
		end := begin + publishers*each
		var group sync.WaitGroup
		for range publishers {
			group.Go(func() { w.publish("a.b", each) })
		}
		for i := range 3 {
			group.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(i)))
				for range rng.IntN(50) {
					runtime.Gosched()
				}
				s := w.session()
				defer s.Close()
				start := begin
				if i == 1 {
					start = latest
				}
				w.subscribe(s, []string{"a.b", "a.>", "a.*"}[rng.IntN(3)], start, session.Options{})
				follow(w, s, end, rng)
			})
		}
		group.Wait()
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

// follow reads until offset end and checks that nothing is missing.
func follow(w *world, s *session.Session, end uint64, rng *rand.Rand) {
	var seen uint64
	for first := true; first || seen < end; {
		m, err := w.next(s)
		if err != nil {
			w.t.Error(err)
			return
		}
		for _, c := range m.GetControls() {
			if sub := c.GetSubscribed(); sub != nil {
				seen, first = sub.GetPosition().GetOffset(), false
			}
			if n := c.GetNotice(); n.GetKind() == runnelv1.NoticeKind_NOTICE_KIND_GAP {
				w.t.Errorf("gap: %v", n)
			}
		}
		for _, d := range m.GetDeliveries() {
			for _, ev := range d.GetEvents() {
				if ev.GetOffset() != seen+1 {
					w.t.Errorf("offset %d after %d", ev.GetOffset(), seen)
					return
				}
				seen++
			}
		}
		for range rng.IntN(20) {
			runtime.Gosched()
		}
	}
}

// collect reads frames until n events and notices of losses together have come, or the session ends.
func (w *world) collect(s *session.Session, n uint64) (offsets []uint64, notices []*runnelv1.Notice, err error) {
	for got := uint64(0); got < n; {
		m, err := w.next(s)
		if err != nil {
			return offsets, notices, err
		}
		for _, c := range m.GetControls() {
			if c.GetNotice() != nil {
				notices = append(notices, c.GetNotice())
				got += c.GetNotice().GetCount()
			}
		}
		for _, d := range m.GetDeliveries() {
			for _, ev := range d.GetEvents() {
				offsets = append(offsets, ev.GetOffset())
				got++
			}
		}
	}
	return offsets, notices, nil
}

func TestDropOldest(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 1<<20)
	s := w.session()
	w.subscribe(s, "a.>", latest, session.Options{Credit: 10, MaxLag: 20, Policy: runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST})
	w.publish("a.b", 100)
	got, notices, err := w.collect(s, 10)
	if err != nil || len(got) != 10 || len(notices) != 0 {
		t.Fatalf("with credit 10: %v, %v, %v", got, notices, err)
	}
	// The session itself notices that the credit is used up, and says so at its next tick.
	_, notices, err = w.collect(s, 70)
	if err != nil || len(notices) != 1 || notices[0].GetCount() != 70 || notices[0].GetFrom() != 11 || notices[0].GetTo() != 80 {
		t.Fatalf("notices %v, %v", notices, err)
	}
	s.Credit(1, 1000)
	got, _, err = w.collect(s, 20)
	if err != nil || got[0] != 81 || got[19] != 100 {
		t.Fatalf("after credit: %v, %v", got, err)
	}
}

func TestDisconnect(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryNone}, 1<<20)
	s := w.session()
	w.subscribe(s, "a.>", latest, session.Options{Credit: 10, MaxLag: 20, Policy: runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT})
	w.publish("a.b", 31)
	_, _, err := w.collect(s, 1000)
	var slow *session.SlowConsumerError
	if !errors.As(err, &slow) || slow.Subscription != 1 {
		t.Fatalf("%v", err)
	}
}

// A slow subscription with credit must not hold up another of the same session.
func TestIndependentSubscriptions(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 4<<10)
	s := w.session()
	w.subscribe(s, "a.slow", latest, session.Options{Credit: 1})
	w.subscribe(s, "a.fast", latest, session.Options{})
	w.publish("a.slow", 50)
	w.publish("a.fast", 50)
	got, _, err := w.collect(s, 51)
	if err != nil || len(got) != 51 {
		t.Fatalf("%d events, %v", len(got), err)
	}
	s.Credit(1, 100) // out of the window by now: the rest comes from the log
	if got, _, err = w.collect(s, 49); err != nil || fmt.Sprint(got[0], got[48]) != "2 50" {
		t.Fatalf("%v, %v", got, err)
	}
}

// Retention that overtakes a reader is told as a gap, and the reader goes on behind it.
func TestGap(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory, MaxEvents: 10}, 1<<10)
	s := w.session()
	w.subscribe(s, "a.>", latest, session.Options{Credit: 5})
	w.publish("a.b", 5)
	got, _, err := w.collect(s, 5)
	if err != nil || len(got) != 5 {
		t.Fatal(got, err)
	}
	// A second session shows when the hub has seen the last event: only then has the first one certainly lost its window.
	other := w.session()
	w.subscribe(other, "a.>", latest, session.Options{})
	w.publish("a.b", 195)
	for last := uint64(0); last < 200; {
		seen, _, err := w.collect(other, 1)
		if err != nil {
			t.Fatal(err)
		}
		last = seen[len(seen)-1]
	}
	s.Credit(1, 1000)
	got, notices, err := w.collect(s, 10)
	if err != nil || got[0] != 191 {
		t.Fatalf("%v, %v, %v", got, notices, err)
	}
	var kinds []string
	for _, n := range notices {
		kinds = append(kinds, fmt.Sprint(n.GetKind(), n.GetFrom(), n.GetTo()))
	}
	// CAUGHT_UP comes with the events or behind them, as the window reaches.
	if fmt.Sprint(kinds[:2]) != "[NOTICE_KIND_BEHIND 5 5 NOTICE_KIND_GAP 6 190]" {
		t.Errorf("%v", kinds)
	}
}
