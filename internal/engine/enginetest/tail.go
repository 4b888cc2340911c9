package enginetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/history"
)

var tailCases = []testCase{
	{"a tail begins behind its start", kept, 0, tailBegins},
	{"a tail without history begins now", none, 0, tailBeginsNow},
	{"a tail waits for events", all, 0, tailWaits},
	{"a tail sees nothing twice and misses nothing", kept, 0, tailSeam},
	{"a tail without history misses nothing", none, 0, tailSeamNone},
	{"a tail sees a duplicate once", all, 0, tailDuplicate},
	{"a slow tail misses nothing", kept, 0, tailSlow},
	{"a tail that retention overtakes is told", kept, 0, tailTrimmed},
	{"a tail outlives a Next that was given up", all, 0, tailCancelled},
	{"Close ends a waiting Next", all, 0, tailClose},
	{"closing the engine ends tails", all, 0, tailEngineClose},
}

func (g *rig) tail(l engine.Log, after uint64) engine.Tail {
	g.Helper()
	t, err := l.Tail(after)
	if err != nil {
		g.Fatalf("tail after %d: %v", after, err)
	}
	g.Cleanup(t.Close)
	return t
}

// next reads n events from a tail. Pages must be in order and go on.
func (g *rig) next(t engine.Tail, n int) []engine.Event {
	g.Helper()
	var list []engine.Event
	for len(list) < n {
		p, err := t.Next(g.ctx)
		if err != nil {
			g.Fatalf("tail, after %d of %d events: %v", len(list), n, err)
		}
		if len(p.Damaged) > 0 {
			g.Fatalf("tail: damaged %v", p.Damaged)
		}
		list = append(list, p.Events...)
		for i, ev := range p.Events {
			if ev.Offset > p.Scanned || i > 0 && ev.Offset <= p.Events[i-1].Offset {
				g.Errorf("tail: offset %d in a page up to %d", ev.Offset, p.Scanned)
			}
		}
	}
	return list
}

func tailBegins(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 100, "n.a", "n.b")
	var tails []engine.Tail
	starts := []int{0, 1, 37, 99, 100}
	for _, i := range starts {
		after := uint64(0)
		if i > 0 {
			after = list[i-1].offset
		}
		tails = append(tails, g.tail(l, after))
	}
	list = append(list, g.fill(l, 50, "n.a", "n.b")...)
	for i, t := range tails {
		g.same(fmt.Sprintf("tail behind event %d", starts[i]), g.next(t, len(list)-starts[i]), list[starts[i]:])
	}
}

func tailBeginsNow(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 10, "n.a")
	for _, after := range []uint64{0, 5, 1000} {
		t := g.tail(l, after)
		k := g.put(l, "n.a", fmt.Sprint("new", after))
		if got := g.next(t, 1); got[0].Topic != k.name || got[0].Timestamp != k.time {
			g.Errorf("after %d: %+v, want %+v", after, got[0], k)
		}
		t.Close()
	}
}

func tailWaits(g *rig) {
	l := g.open(engine.Config{})
	t := g.tail(l, 0)
	for i := range 20 {
		var group sync.WaitGroup
		var got []engine.Event
		group.Go(func() { got = g.next(t, 1) })
		k := g.put(l, "n.a", fmt.Sprint(i))
		group.Wait()
		if len(got) != 1 || got[0].Topic != k.name || got[0].Timestamp != k.time {
			g.Fatalf("%+v, want %+v", got, k)
		}
	}
}

// tailSeam opens tails while publishers run: at the head, where log and live meet, and behind it.
func tailSeam(g *rig) {
	const publishers, each, tails = 4, 150, 6
	l := g.open(engine.Config{})
	a := g.account(l)
	done := make(chan struct{})
	var publishing, following sync.WaitGroup
	for w := range publishers {
		publishing.Go(func() {
			for i := range each {
				a.append(l, engine.AppendEach, g.entry(fmt.Sprintf("n.%d", w), fmt.Sprint(w, "-", i), "x"))
			}
		})
	}
	for i := range tails {
		following.Go(func() { a.followTail(l, i, done) })
	}
	publishing.Wait()
	close(done)
	a.append(l, engine.AppendEach, g.entry("n.last", "last", "ends the tails"))
	following.Wait()
	a.judge(l)
}

// followTail follows the log until done is closed and the head reached. Odd tails begin behind.
func (a *account) followTail(l engine.Log, n int, done <-chan struct{}) {
	s := l.State()
	start := s.Head
	if n%2 == 1 {
		start /= 2
	}
	t, err := l.Tail(start)
	if err != nil {
		a.g.Errorf("tail after %d: %v", start, err)
		return
	}
	defer t.Close()
	p := a.g.pattern("n.>")
	sub := a.rec.Subscriber(fmt.Sprintf("tail %d", n), p)
	sub.Subscribed(history.Position{Epoch: s.Epoch, Offset: start})
	for at := start; ; {
		select {
		case <-done:
			if at >= l.State().Head {
				sub.Complete(at)
				return
			}
		default:
		}
		page, err := t.Next(a.g.ctx)
		if err != nil {
			a.g.Errorf("tail at %d: %v", at, err)
			return
		}
		a.page(sub, p, s.Epoch, page)
		at = page.Scanned
	}
}

// tailSeamNone: without history every tail sees every event from its beginning on, in one order.
func tailSeamNone(g *rig) {
	const publishers, each, tails = 4, 200, 3
	l := g.open(engine.Config{})
	var list []engine.Tail
	for range tails {
		list = append(list, g.tail(l, 0))
	}
	seen := make([][]engine.Event, tails)
	var group sync.WaitGroup
	for w := range publishers {
		group.Go(func() {
			for i := range each {
				g.put(l, fmt.Sprintf("n.%d", w), fmt.Sprint(w, "-", i))
			}
		})
	}
	for i, t := range list {
		group.Go(func() { seen[i] = g.next(t, publishers*each) })
	}
	group.Wait()
	for i := range tails {
		last := map[string]int{}
		for j, ev := range seen[i] {
			if string(ev.Wire) != string(seen[0][j].Wire) || j > 0 && ev.Offset <= seen[i][j-1].Offset {
				g.Fatalf("tail %d, event %d: %d %s, tail 0 has %d %s", i, j, ev.Offset, ev.Topic, seen[0][j].Offset, seen[0][j].Topic)
			}
			last[ev.Topic.String()]++
		}
		for name, n := range last {
			if n != each {
				g.Errorf("tail %d: %d events on %s, want %d", i, n, name, each)
			}
		}
	}
}

func tailDuplicate(g *rig) {
	l := g.open(engine.Config{})
	t := g.tail(l, 0)
	g.append(l, g.dedup("n.a", "1", "x"), g.dedup("n.a", "1", "x"))
	g.append(l, g.dedup("n.a", "1", "x"))
	g.append(l, g.dedup("n.b", "2", "y"))
	got := g.next(t, 2)
	if len(got) != 2 || got[0].Topic != g.name("n.a") || got[1].Topic != g.name("n.b") {
		g.Errorf("%+v", got)
	}
}

// tailSlow leaves a tail alone until far more was published than an engine would keep in memory for it.
func tailSlow(g *rig) {
	l := g.open(engine.Config{})
	slow, fast := g.tail(l, 0), g.tail(l, 0)
	var list []known
	payload := strings.Repeat("x", 100_000)
	for i := range 160 {
		list = append(list, g.put(l, "n.a", fmt.Sprint(i, payload)))
		g.same("the fast tail", g.next(fast, 1), list[i:])
	}
	g.same("the slow tail", g.next(slow, len(list)), list)
	list = append(list, g.fill(l, 10, "n.b")...)
	g.same("the slow tail, caught up", g.next(slow, 10), list[160:])
}

// tailTrimmed: what a tail missed because retention was faster is listed as damaged, and nothing else is missing.
func tailTrimmed(g *rig) {
	l := g.open(engine.Config{MaxEvents: 10})
	a := g.account(l)
	s := l.State()
	t := g.tail(l, 0)
	p := g.pattern("n.>")
	sub := a.rec.Subscriber("tail", p)
	sub.Subscribed(history.Position{Epoch: s.Epoch, Offset: s.Head})
	payload := strings.Repeat("x", 100_000) // more than is kept in memory for a tail
	for i := range 160 {
		a.append(l, engine.AppendEach, g.entry("n.a", fmt.Sprint(i), payload))
	}
	g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= 10 })
	for at := uint64(0); at < l.State().Head; {
		page, err := t.Next(g.ctx)
		if err != nil {
			g.Fatalf("tail at %d: %v", at, err)
		}
		a.page(sub, p, s.Epoch, page)
		at = page.Scanned
	}
	sub.Complete(l.State().Head)
	a.judge(l)
}

func tailCancelled(g *rig) {
	l := g.open(engine.Config{})
	t := g.tail(l, 0)
	for i := range 10 {
		ctx, cancel := context.WithCancel(g.ctx)
		var group sync.WaitGroup
		group.Go(func() {
			if p, err := t.Next(ctx); !errors.Is(err, context.Canceled) {
				g.Errorf("%+v, %v", p, err)
			}
		})
		cancel()
		group.Wait()
		k := g.put(l, "n.a", fmt.Sprint(i))
		if got := g.next(t, 1); got[0].Timestamp != k.time || got[0].Topic != k.name || g.history != engine.HistoryNone && got[0].Offset != k.offset {
			g.Fatalf("%+v, want %+v", got[0], k)
		}
	}
}

func tailClose(g *rig) {
	l := g.open(engine.Config{})
	for range 20 {
		t := g.tail(l, l.State().Head)
		wait := g.waiting(t)
		t.Close()
		wait()
		t.Close()
		if p, err := t.Next(g.ctx); !errors.Is(err, engine.ErrClosed) {
			g.Errorf("after Close: %+v, %v", p, err)
		}
		g.put(l, "n.a", "x")
		if p, err := t.Next(g.ctx); !errors.Is(err, engine.ErrClosed) {
			g.Errorf("after Close, with an event waiting: %+v, %v", p, err)
		}
	}
}

// waiting calls Next, which is to end with ErrClosed, and gives it time to begin waiting. What it returns waits for that end.
func (g *rig) waiting(t engine.Tail) (wait func()) {
	var group sync.WaitGroup
	begun := make(chan struct{})
	group.Go(func() {
		close(begun)
		if p, err := t.Next(g.ctx); !errors.Is(err, engine.ErrClosed) {
			g.Errorf("a waiting Next: %+v, %v", p, err)
		}
	})
	<-begun
	for range 100 {
		runtime.Gosched()
	}
	return group.Wait
}

func tailEngineClose(g *rig) {
	l := g.open(engine.Config{})
	wait, idle := g.waiting(g.tail(l, 0)), g.tail(l, 0)
	g.close()
	wait()
	if p, err := idle.Next(g.ctx); !errors.Is(err, engine.ErrClosed) {
		g.Errorf("%+v, %v", p, err)
	}
	if _, err := l.Tail(0); !errors.Is(err, engine.ErrClosed) {
		g.Errorf("a new tail: %v", err)
	}
}
