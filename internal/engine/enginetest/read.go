package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

var readCases = []testCase{
	{"reading by position and pattern", kept, 0, readAnything},
	{"reading a log without history", none, 0, readNone},
	{"events are handed out whole", kept, 0, readWhole},
	{"at least one event is returned", kept, 0, readAtLeastOne},
	{"a scan is bounded", kept, 0, scanBounded},
	{"reading at the end", kept, 0, readAtEnd},
	{"reading below the oldest", kept, 0, readGone},
	{"reading what is trimmed meanwhile", kept, 0, readWhileTrimming},
	{"ReadAt", kept, 0, readAt},
	{"ReadAt of trimmed offsets", kept, 0, readAtTrimmed},
	{"a read whose context has ended", kept, 0, readCancelled},
	{"BeforeTime", kept, needClock, beforeTime},
	{"AfterLast", kept, 0, afterLast},
	{"LastOffsets", kept, 0, lastOffsets},
	{"lookups without history", none, 0, lookupsNone},
}

var (
	someTopics   = []string{"n", "n.a", "n.b", "n.ab", "n.a.x", "n.a.y", "n.b.x", "n.a-b"}
	somePatterns = []string{"n", "n.a", "n.b", "n.>", "n.*", "n.a.>", "n.*.x", "n.a.x", "n.none", "n.a.*.z", "n.ab"}
)

// newRand returns numbers that are the same in every run.
func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x72756e6e656c)) }

func readAnything(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 400, someTopics...)
	rng := newRand(2)
	head := l.State().Head
	for range 200 {
		p := g.pattern(somePatterns[rng.IntN(len(somePatterns))])
		if rng.IntN(5) == 0 {
			p = topic.Pattern{}
		}
		r := engine.ReadRequest{
			Pattern: p, After: uint64(rng.IntN(int(head) + 1)), To: uint64(rng.IntN(int(head) + 5)),
			MaxEvents: rng.IntN(30), MaxBytes: rng.IntN(400), MaxScan: rng.IntN(40),
		}
		to := head
		if r.To > 0 {
			to = min(to, r.To)
		}
		g.same(fmt.Sprintf("%+v", r), g.read(l, r), matching(list, p, r.After, to))
	}
}

func readNone(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 20, someTopics...)
	for _, after := range []uint64{0, 5, 1000} {
		p, err := l.Read(g.ctx, engine.ReadRequest{Pattern: g.pattern("n.>"), After: after})
		if err != nil || len(p.Events) > 0 || len(p.Damaged) > 0 || p.Scanned < max(after, l.State().Head) {
			g.Errorf("after %d: %+v, %v", after, p, err)
		}
	}
}

func readWhole(g *rig) {
	l := g.open(engine.Config{})
	var list []known
	for i, size := range []int{0, 1, 127, 128, 5000, 1 << 20, 3} {
		list = append(list, g.put(l, "n.a", strings.Repeat(fmt.Sprint(i), size)))
	}
	g.same("all", g.read(l, engine.ReadRequest{}), list)
	g.same("the topic", g.read(l, engine.ReadRequest{Pattern: g.pattern("n.a"), MaxBytes: 6000}), list)
	// What was handed out is never changed.
	first := g.read(l, engine.ReadRequest{})
	g.fill(l, 500, "n.a", "n.b")
	g.read(l, engine.ReadRequest{})
	g.same("the first events again", first, list)
}

func readAtLeastOne(g *rig) {
	l := g.open(engine.Config{})
	big := g.put(l, "n.a", strings.Repeat("x", 10_000))
	g.put(l, "n.a", "small")
	p, err := l.Read(g.ctx, engine.ReadRequest{MaxBytes: 1, MaxEvents: 1, MaxScan: 1})
	if err != nil || len(p.Events) != 1 || p.Scanned != big.offset {
		g.Errorf("%d events up to %d, %v", len(p.Events), p.Scanned, err)
	}
}

// A page of a rare pattern ends in time, and says how far it came.
func scanBounded(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 500, "n.a", "n.b")
	rare := g.put(l, "n.c.rare", "found")
	r := engine.ReadRequest{Pattern: g.pattern("n.c.>"), MaxScan: 50}
	p, err := l.Read(g.ctx, r)
	if err != nil || len(p.Events) > 0 || p.Scanned >= rare.offset || p.Scanned < 1 {
		g.Errorf("%+v, %v", p, err)
	}
	g.same("all", g.read(l, r), []known{rare})
}

func readAtEnd(g *rig) {
	l := g.open(engine.Config{})
	if p, err := l.Read(g.ctx, engine.ReadRequest{}); err != nil || len(p.Events) > 0 || p.Scanned != 0 {
		g.Errorf("an empty log: %+v, %v", p, err)
	}
	list := g.fill(l, 10, "n.a")
	head := l.State().Head
	for _, after := range []uint64{head, head + 1, head + 1000} {
		for _, pattern := range []string{"n.a", "n.>"} {
			p, err := l.Read(g.ctx, engine.ReadRequest{Pattern: g.pattern(pattern), After: after})
			if err != nil || len(p.Events) > 0 || p.Scanned != after {
				g.Errorf("%s after %d, head %d: %+v, %v", pattern, after, head, p, err)
			}
		}
	}
	p, err := l.Read(g.ctx, engine.ReadRequest{To: head + 1000})
	if err != nil || p.Scanned != head {
		g.Errorf("to far above the head: scanned %d, %v", p.Scanned, err)
	}
	g.same("to far above the head", p.Events, list)
}

func isGone(err error, s engine.State) bool {
	var gone *engine.PositionGoneError
	return errors.As(err, &gone) && gone.Oldest == s.Oldest && gone.Newest == s.Head
}

func readGone(g *rig) {
	l := g.open(engine.Config{MaxEvents: 10})
	list := g.fill(l, 100, "n.a", "n.b")
	g.eventually("trimming", func() bool { return l.State().Oldest > 80 })
	s := l.State()
	for _, pattern := range []string{"n.a", "n.>", "n.none"} {
		p := g.pattern(pattern)
		for _, after := range []uint64{0, 1, s.Oldest - 2} {
			if _, err := l.Read(g.ctx, engine.ReadRequest{Pattern: p, After: after}); !isGone(err, s) {
				g.Errorf("%s after %d, state %+v: %v", pattern, after, s, err)
			}
		}
		g.same(pattern, g.read(l, engine.ReadRequest{Pattern: p, After: s.Oldest - 1}), matching(list, p, s.Oldest-1, s.Head))
	}
}

// readWhileTrimming reads behind a publisher with retention in between: what is missing from a page must be told.
func readWhileTrimming(g *rig) {
	const total, batch = 6000, 20
	l := g.open(engine.Config{MaxEvents: 50})
	a := g.account(l)
	done, stop := context.WithCancel(g.ctx)
	defer stop()
	var group sync.WaitGroup
	for _, pattern := range []string{"n.>", "n.a", "n.b"} {
		group.Go(func() {
			for pass := 0; done.Err() == nil && pass < 300; pass++ {
				a.readAll(l, a.rec.Subscriber(fmt.Sprint(pattern, " pass ", pass), g.pattern(pattern)), g.pattern(pattern))
			}
		})
	}
	for i := 0; i < total; i += batch {
		var entries []engine.Entry
		for j := range batch {
			entries = append(entries, g.entry([]string{"n.a", "n.b"}[(i+j)%2], fmt.Sprint(i+j), "x"))
		}
		a.append(l, engine.AppendEach, entries...)
	}
	stop()
	group.Wait()
	a.judge(l)
}

func readAt(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 100, someTopics...)
	var offsets []uint64
	var want []known
	for i := 0; i < len(list); i += 3 {
		offsets = append(offsets, list[i].offset)
		want = append(want, list[i])
	}
	for _, maxBytes := range []int{1, 100, 1000, 1 << 20} {
		var got []engine.Event
		for rest := offsets; len(rest) > 0; {
			p, err := l.ReadAt(g.ctx, rest, maxBytes)
			if err != nil || len(p.Events) == 0 || len(p.Damaged) > 0 || p.Scanned != p.Events[len(p.Events)-1].Offset {
				g.Fatalf("%v, at most %d bytes: %+v, %v", rest, maxBytes, p, err)
			}
			g.checkPage(engine.ReadRequest{MaxBytes: maxBytes}, p)
			got = append(got, p.Events...)
			rest = rest[len(p.Events):]
		}
		g.same(fmt.Sprintf("at most %d bytes", maxBytes), got, want)
	}
	if p, err := l.ReadAt(g.ctx, nil, 1000); err != nil || len(p.Events) > 0 {
		g.Errorf("no offsets: %+v, %v", p, err)
	}
}

func readAtTrimmed(g *rig) {
	l := g.open(engine.Config{MaxEvents: 10})
	list := g.fill(l, 50, "n.a")
	g.eventually("trimming", func() bool { return l.State().Oldest > 35 })
	s := l.State()
	above := s.Head + 5
	p, err := l.ReadAt(g.ctx, []uint64{1, 2, s.Oldest - 1, s.Oldest, s.Head, above}, 1<<20)
	if err != nil || p.Scanned != above {
		g.Fatalf("scanned %d, %v", p.Scanned, err)
	}
	g.same("what is left", p.Events, append(matching(list, g.pattern("n.a"), s.Oldest-1, s.Oldest), matching(list, g.pattern("n.a"), s.Head-1, s.Head)...))
	for _, gone := range []uint64{1, 2, s.Oldest - 1, above} {
		if !slices.ContainsFunc(p.Damaged, func(r engine.Range) bool { return r.From <= gone && gone <= r.To }) {
			g.Errorf("offset %d is not listed in %v", gone, p.Damaged)
		}
	}
	for _, r := range p.Damaged {
		if r.From <= s.Oldest && s.Oldest <= r.To || r.From <= s.Head && s.Head <= r.To {
			g.Errorf("an event that is there is listed in %v", p.Damaged)
		}
	}
}

func readCancelled(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 10, "n.a")
	ctx, cancel := context.WithCancel(g.ctx)
	cancel()
	if p, err := l.Read(ctx, engine.ReadRequest{}); !errors.Is(err, context.Canceled) {
		g.Errorf("%+v, %v", p, err)
	}
}

func beforeTime(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 200, "n.a", "n.b")
	first, last := list[0].time, list[len(list)-1].time
	for t := first - 2; t <= last+2; t++ {
		want := l.State().Head
		if i := slices.IndexFunc(list, func(k known) bool { return k.time >= t }); i == 0 {
			want = 0
		} else if i > 0 {
			want = list[i-1].offset
		}
		if got, err := l.BeforeTime(g.ctx, t); err != nil || got != want {
			g.Errorf("time %d: %d, %v, want %d", t, got, err, want)
		}
	}
	for _, c := range []struct {
		t    int64
		want uint64
	}{{0, 0}, {-1, 0}, {1 << 62, l.State().Head}} {
		if got, err := l.BeforeTime(g.ctx, c.t); err != nil || got != c.want {
			g.Errorf("time %d: %d, %v, want %d", c.t, got, err, c.want)
		}
	}
}

func afterLast(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 200, someTopics...)
	head := l.State().Head
	for _, pattern := range somePatterns {
		p := g.pattern(pattern)
		for _, upTo := range []uint64{0, 1, 7, head / 2, head - 1, head, head + 10} {
			all := matching(list, p, 0, upTo)
			for _, n := range []int{1, 2, 10, max(1, len(all)), len(all) + 1, 1000} {
				after, err := l.AfterLast(g.ctx, p, n, upTo)
				if err != nil {
					g.Errorf("%s, %d up to %d: %v", p, n, upTo, err)
				}
				if got := matching(list, p, after, upTo); len(got) != min(n, len(all)) {
					g.Errorf("%s, %d up to %d: after %d there are %d", p, n, upTo, after, len(got))
				}
			}
		}
	}
}

func lastOffsets(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 200, someTopics...)
	head := l.State().Head
	for _, pattern := range somePatterns {
		p := g.pattern(pattern)
		for _, upTo := range []uint64{0, 1, 5, 20, head / 2, head - 1, head, head + 10} {
			newest := map[topic.Name]uint64{}
			for _, k := range matching(list, p, 0, upTo) {
				newest[k.name] = k.offset
			}
			want := make([]uint64, 0, len(newest))
			for _, offset := range newest {
				want = append(want, offset)
			}
			slices.Sort(want)
			if got, err := l.LastOffsets(g.ctx, p, upTo, len(want)); err != nil || !slices.Equal(got, want) {
				g.Errorf("%s up to %d: %v, %v, want %v", p, upTo, got, err, want)
			}
			if len(want) == 0 {
				continue
			}
			var many *engine.TooManyTopicsError
			if got, err := l.LastOffsets(g.ctx, p, upTo, len(want)-1); !errors.As(err, &many) || many.Limit != len(want)-1 {
				g.Errorf("%s up to %d with limit %d: %v, %v", p, upTo, len(want)-1, got, err)
			}
		}
	}
}

// lookupsNone: without history there is nothing to be found, and nothing hangs or panics.
func lookupsNone(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 20, someTopics...)
	p := g.pattern("n.>")
	offsets, err := l.LastOffsets(g.ctx, p, 100, 100)
	if len(offsets) > 0 || err != nil && !errors.Is(err, engine.ErrNoHistory) {
		g.Errorf("LastOffsets: %v, %v", offsets, err)
	}
	page, err := l.ReadAt(g.ctx, []uint64{1, 2}, 100)
	if len(page.Events) > 0 || err != nil && !errors.Is(err, engine.ErrNoHistory) {
		g.Errorf("ReadAt: %v, %v", page, err)
	}
	if _, ok, err := l.Topic(g.ctx, g.name("n.a")); ok || err != nil && !errors.Is(err, engine.ErrNoHistory) {
		g.Errorf("Topic: %v, %v", ok, err)
	}
	list, more, err := l.Topics(g.ctx, p, "", 100)
	if len(list) > 0 || more || err != nil && !errors.Is(err, engine.ErrNoHistory) {
		g.Errorf("Topics: %v, %v, %v", list, more, err)
	}
	s := l.State()
	if after, err := l.AfterLast(g.ctx, p, 3, s.Head); err == nil && after != s.Head {
		g.Errorf("AfterLast: %d, state %+v", after, s)
	}
	if after, err := l.BeforeTime(g.ctx, 0); err == nil && after != s.Head {
		g.Errorf("BeforeTime: %d, state %+v", after, s)
	}
}
