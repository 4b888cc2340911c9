package natsengine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/engine/enginetest"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// The fault runs, on a cluster whose servers are stopped, or cut off from each other. With RUNNEL_CRASH set for minutes.
func TestFaults(t *testing.T) {
	t.Parallel()
	c := natstest.NewIsolable(t, 3)
	f := factory(c, 3, engine.HistoryDisk)
	f.Patience = time.Hour // go test has a limit of its own
	d := disturber{c: c, longest: 300 * time.Millisecond}
	if os.Getenv("RUNNEL_CRASH") != "" {
		d.longest = 8 * time.Second // long enough for another leader
	}
	storage := f.Storage
	f.Storage = func(t enginetest.TB) enginetest.Storage {
		s := storage(t)
		s.Disturb = d.disturb
		return s
	}
	enginetest.RunFaults(t, f)
}

// disturber does one thing after the other to a cluster, so that a short run has seen each.
type disturber struct {
	c       *natstest.Cluster
	longest time.Duration // that it lasts
	n       int
}

func (d *disturber) disturb(rng *rand.Rand) {
	one := rng.IntN(d.c.Size())
	leader := max(d.c.LeaderOfAny(), 0)
	stopped, alone := []int{}, -1
	switch d.n % 5 {
	case 0:
		stopped = []int{leader}
	case 1:
		alone = leader
	case 2:
		stopped = []int{0, 1, 2}
	case 3:
		alone = one
	case 4:
		stopped = []int{one}
	}
	d.n++
	for _, i := range stopped {
		d.c.Stop(i)
	}
	if alone >= 0 {
		d.c.Isolate(alone)
	}
	time.Sleep(time.Duration(rng.Int64N(int64(d.longest)))) // writers meet what is left
	for _, i := range stopped {
		d.c.Start(i)
	}
	if alone >= 0 {
		d.c.Heal()
	}
	d.c.WaitReady()
	d.c.WaitHealthy()
}

// entry makes an event with an id that may come again.
func entry(name, id string) engine.Entry {
	n, err := topic.Parse(name)
	if err != nil {
		panic(err)
	}
	return engine.Entry{Topic: n, ID: id, Dedup: true, Body: wire.AppendBody(nil, n, id, "p", &runnelv1.PublishRequest{Payload: []byte(id)})}
}

func logOf(t testing.TB, e *Engine, name string) *log {
	t.Helper()
	l, err := e.Log(name)
	if err != nil {
		t.Fatalf("log %s: %v", name, err)
	}
	return l.(*log)
}

func put(t testing.TB, l engine.Log, entries ...engine.Entry) []engine.Result {
	t.Helper()
	res, err := l.Append(t.Context(), entries, engine.AppendOrdered)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	for _, r := range res {
		if r.Err != nil {
			t.Fatalf("append: %+v", res)
		}
	}
	return res
}

// everything reads a log from its beginning.
func everything(t testing.TB, l engine.Log) (list []engine.Event) {
	t.Helper()
	for after, head := uint64(0), l.State().Head; after < head; {
		p, err := l.Read(t.Context(), engine.ReadRequest{After: after})
		if err != nil || len(p.Damaged) > 0 {
			t.Fatalf("read after %d: %v, %v", after, p.Damaged, err)
		}
		list, after = append(list, p.Events...), p.Scanned
	}
	return list
}

// Connections break in the middle of appends: what was acknowledged is there once, at its offset, and what failed is there once
// or not at all.
func TestCutConnections(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	p := newProxy(t, c.URL(0))
	e := open(t, Options{URLs: []string{p.url()}, Replicas: 1})
	l := logOf(t, e, "n")
	const writers, cuts = 8, 5
	var group sync.WaitGroup
	var mu sync.Mutex
	acked := map[string]engine.Result{}
	done := make(chan struct{})
	for w := range writers {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				batch := []engine.Entry{entry("n.a", fmt.Sprintf("%d-%d", w, i))}
				if i%3 == 0 { // an atomic batch
					batch = append(batch, entry("n.b", fmt.Sprintf("%d-%d-b", w, i)), entry("n.c", fmt.Sprintf("%d-%d-c", w, i)))
				}
				for n := 0; ; n++ {
					res, err := l.Append(t.Context(), batch, engine.AppendOrdered)
					if errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrStorageFailed) {
						_ = pause(t.Context(), n)
						continue
					}
					if err != nil {
						t.Errorf("append: %v", err)
						return
					}
					mu.Lock()
					for k, r := range res {
						acked[batch[k].ID] = r
					}
					mu.Unlock()
					break
				}
			}
		})
	}
	for range cuts {
		mu.Lock()
		before := len(acked)
		mu.Unlock()
		until(t, "appends", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > before+100 })
		p.cut(false)
	}
	close(done)
	group.Wait()
	seen := map[string]int{}
	for _, ev := range everything(t, l) {
		m := new(runnelv1.Event)
		unmarshal(t, ev.Wire, m)
		seen[m.GetEventId()]++
		if r := acked[m.GetEventId()]; r.Err != nil || r.Offset != ev.Offset || r.Timestamp != ev.Timestamp {
			t.Errorf("%s at offset %d, time %d, was acknowledged as %+v", m.GetEventId(), ev.Offset, ev.Timestamp, r)
		}
	}
	for id := range acked {
		if seen[id] != 1 {
			t.Errorf("%s is there %d times", id, seen[id])
		}
	}
}

// While NATS is away publishes fail at once, the engine says that it is not well, and what is in memory can be read.
func TestAway(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	e := open(t, Options{URLs: c.URLs(), Replicas: 1})
	l := logOf(t, e, "n")
	for i := range 10 {
		put(t, l, entry("n.a", fmt.Sprint(i)))
	}
	tail, err := l.Tail(10)
	if err != nil {
		t.Fatal(err)
	}
	c.Stop(0)
	until(t, "health", func() bool { return errors.Is(e.Health(), engine.ErrUnavailable) && !e.write.up() })
	began := time.Now()
	if res, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "10")}, engine.AppendEach); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("%+v, %v", res, err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v to learn that NATS is away", took)
	}
	if got := everything(t, l); len(got) != 10 {
		t.Errorf("%d events", len(got))
	}
	if _, err := e.Log("new"); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a new namespace: %v", err)
	}
	c.Start(0)
	until(t, "recovery", func() bool {
		_, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "10")}, engine.AppendEach)
		return err == nil
	})
	until(t, "health", func() bool { return e.Health() == nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if page, err := tail.Next(ctx); err != nil || len(page.Events) != 1 || page.Events[0].Offset != 11 {
		t.Errorf("%+v, %v", page, err)
	}
	logOf(t, e, "new")
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: it never happened", what)
		}
	}
}
