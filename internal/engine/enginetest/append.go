package enginetest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

var appendCases = []testCase{
	{"offsets rise from 1", kept, 0, offsetsRise},
	{"offsets are 0 without history", none, 0, offsetsAreZero},
	{"state", all, 0, state},
	{"timestamps never fall", kept, needClock, timestampsNeverFall},
	{"timestamps are the clock's", all, needClock, timestampsAreTheClocks},
	{"an empty append does nothing", all, 0, emptyAppend},
	{"a large append is one", kept, 0, largeAppend},
	{"an append is readable when it returns", kept, 0, readableAtOnce},
	{"each entry stands for itself", kept, 0, eachForItself},
	{"an ordered append stops at a failure", kept, 0, orderedStops},
	{"a duplicate does not stop an ordered append", kept, 0, orderedDuplicate},
	{"conditional", kept, 0, conditional},
	{"conditional sees what is pending", kept, 0, conditionalPending},
	{"conditional after trimming", kept, 0, conditionalTrimmed},
	{"conditional without history", none, 0, conditionalNone},
	{"of racing conditionals one wins", kept, 0, conditionalRace},
	{"an append whose context has ended", all, 0, appendCancelled},
}

func offsetsRise(g *rig) {
	l := g.open(engine.Config{})
	if s := l.State(); s.Head != 0 || s.Oldest != 1 {
		g.Errorf("a new log: %+v", s)
	}
	before := uint64(0)
	for _, k := range g.fill(l, 300, "n.a", "n.b") {
		if k.offset <= before {
			g.Fatalf("offset %d behind %d", k.offset, before)
		}
		if before == 0 && k.offset != 1 {
			g.Errorf("the first offset is %d", k.offset)
		}
		before = k.offset
	}
	if s := l.State(); s.Head != before || s.Oldest != 1 {
		g.Errorf("after offset %d: %+v", before, s)
	}
	if first := g.put(g.log("other"), "other.a", "x"); first.offset != 1 {
		g.Errorf("another namespace begins at offset %d", first.offset)
	}
}

func offsetsAreZero(g *rig) {
	l := g.open(engine.Config{})
	for _, k := range g.fill(l, 50, "n.a", "n.b") {
		if k.offset != 0 || k.time == 0 {
			g.Errorf("%+v", k)
		}
	}
}

var epochForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

func state(g *rig) {
	l := g.open(engine.Config{})
	s := l.State()
	if l.Namespace() != namespace || !epochForm.MatchString(s.Epoch) || s.Durability != g.f.durability(g.history) ||
		s.History != (g.history != engine.HistoryNone) {
		g.Errorf("%s: %+v", l.Namespace(), s)
	}
	if err := g.eng.Health(); err != nil {
		g.Errorf("health: %v", err)
	}
	g.fill(l, 10, "n.a")
	if after := l.State(); after.Epoch != s.Epoch {
		g.Errorf("the epoch was %s and is %s", s.Epoch, after.Epoch)
	}
}

func timestampsNeverFall(g *rig) {
	l := g.open(engine.Config{})
	first := g.put(l, "n.a", "1")
	g.clock.move(-time.Hour)
	second := g.put(l, "n.b", "2")
	if second.time < first.time {
		g.Errorf("time %d behind %d", second.time, first.time)
	}
	if g.history != engine.HistoryMemory {
		l = g.restart()
		if third := g.put(l, "n.b", "3"); third.time < first.time {
			g.Errorf("after a restart: time %d behind %d", third.time, first.time)
		}
	}
	g.clock.move(2 * time.Hour)
	if last := g.put(l, "n.a", "4"); last.time != g.clock.now().UnixMilli() {
		g.Errorf("the clock has caught up, and the time is %d, want %d", last.time, g.clock.now().UnixMilli())
	}
}

func timestampsAreTheClocks(g *rig) {
	l := g.open(engine.Config{})
	for i := range 5 {
		g.clock.move(time.Second)
		if k := g.put(l, "n.a", fmt.Sprint(i)); k.time != g.clock.now().UnixMilli() {
			g.Errorf("time %d, want %d", k.time, g.clock.now().UnixMilli())
		}
	}
}

func emptyAppend(g *rig) {
	l := g.open(engine.Config{})
	before := l.State()
	for _, mode := range []engine.AppendMode{engine.AppendEach, engine.AppendOrdered} {
		if res := g.appendMode(l, mode); len(res) != 0 {
			g.Errorf("%d results", len(res))
		}
	}
	if after := l.State(); after != before {
		g.Errorf("%+v became %+v", before, after)
	}
}

func largeAppend(g *rig) {
	l := g.open(engine.Config{})
	const n = 6000
	var batch []engine.Entry
	for i := range n {
		batch = append(batch, g.entry(fmt.Sprintf("n.t%d", i%3), fmt.Sprint(i), "x"))
	}
	res := g.appendMode(l, engine.AppendOrdered, batch...)
	for i := 1; i < n; i++ {
		if res[i].Err != nil || res[i].Offset <= res[i-1].Offset || res[i].Timestamp < res[i-1].Timestamp {
			g.Fatalf("result %d: %+v behind %+v", i, res[i], res[i-1])
		}
	}
	if got := g.read(l, engine.ReadRequest{Pattern: g.pattern("n.>")}); len(got) != n {
		g.Errorf("%d events, want %d", len(got), n)
	}
}

func readableAtOnce(g *rig) {
	l := g.open(engine.Config{})
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			for i := range 50 {
				k := g.put(l, fmt.Sprintf("n.w%d", w), fmt.Sprint(w, "-", i))
				if s := l.State(); s.Head < k.offset {
					g.Errorf("offset %d was acknowledged, and the head is %d", k.offset, s.Head)
				}
				p, err := l.Read(g.ctx, engine.ReadRequest{Pattern: k.name.Pattern(), After: k.offset - 1, To: k.offset})
				if err != nil || len(p.Events) != 1 {
					g.Errorf("offset %d was acknowledged, and a read of it gives %d events, %v", k.offset, len(p.Events), err)
					return
				}
				g.check(p.Events[0], k)
			}
		})
	}
	group.Wait()
}

func isConflict(err error, current uint64) bool {
	var conflict *engine.ConflictError
	return errors.As(err, &conflict) && conflict.Current == current
}

func eachForItself(g *rig) {
	l := g.open(engine.Config{})
	res := g.append(l, g.entry("n.a", "1", "1"), g.conditional("n.a", "2", 77), g.entry("n.b", "3", "3"))
	if res[0].Err != nil || !isConflict(res[1].Err, res[0].Offset) || res[2].Err != nil || res[2].Offset <= res[0].Offset {
		g.Errorf("%+v", res)
	}
	if got := g.read(l, engine.ReadRequest{}); len(got) != 2 {
		g.Errorf("%d events are stored, want 2", len(got))
	}
}

func orderedStops(g *rig) {
	l := g.open(engine.Config{})
	res := g.appendMode(l, engine.AppendOrdered,
		g.entry("n.a", "1", "1"), g.conditional("n.a", "2", 77), g.entry("n.b", "3", "3"), g.dedup("n.b", "4", "4"))
	if res[0].Err != nil || !isConflict(res[1].Err, res[0].Offset) || !errors.Is(res[2].Err, engine.ErrSkipped) || !errors.Is(res[3].Err, engine.ErrSkipped) {
		g.Errorf("%+v", res)
	}
	if got := g.read(l, engine.ReadRequest{}); len(got) != 1 {
		g.Errorf("%d events are stored, want 1", len(got))
	}
	// What was skipped is not remembered.
	if r := g.append(l, g.dedup("n.b", "4", "4"))[0]; r.Duplicate || r.Err != nil {
		g.Errorf("a skipped event sent again: %+v", r)
	}
}

func orderedDuplicate(g *rig) {
	l := g.open(engine.Config{})
	res := g.appendMode(l, engine.AppendOrdered, g.dedup("n.a", "1", "1"), g.dedup("n.a", "1", "1"), g.dedup("n.a", "2", "2"))
	if res[0].Err != nil || !res[1].Duplicate || res[1].Err != nil || res[2].Err != nil || res[2].Duplicate || res[2].Offset <= res[0].Offset {
		g.Errorf("%+v", res)
	}
}

func conditional(g *rig) {
	l := g.open(engine.Config{})
	a := g.append(l, g.conditional("n.a", "1", 0))[0]
	if a.Err != nil {
		g.Fatalf("0 on an empty topic: %v", a.Err)
	}
	b := g.append(l, g.conditional("n.b", "2", 0))[0]
	if b.Err != nil {
		g.Fatalf("0 on another empty topic: %v", b.Err)
	}
	for _, wrong := range []uint64{0, b.Offset, b.Offset + 1, a.Offset + 77} {
		if r := g.append(l, g.conditional("n.a", "3", wrong))[0]; !isConflict(r.Err, a.Offset) {
			g.Errorf("expected %d on a topic whose newest is %d: %+v", wrong, a.Offset, r)
		}
	}
	if r := g.append(l, g.conditional("n.a", "4", a.Offset))[0]; r.Err != nil || r.Offset <= b.Offset {
		g.Errorf("expected the newest: %+v", r)
	}
	if got := g.read(l, engine.ReadRequest{}); len(got) != 3 {
		g.Errorf("%d events are stored, want 3", len(got))
	}
}

func conditionalPending(g *rig) {
	l := g.open(engine.Config{})
	res := g.append(l, g.conditional("n.a", "1", 0), g.conditional("n.a", "2", 0), g.entry("n.a", "3", "3"))
	if res[0].Err != nil || !isConflict(res[1].Err, res[0].Offset) || res[2].Err != nil {
		g.Fatalf("%+v", res)
	}
	// The offset that the first of a call will get can be told where offsets are dense; else this is a conflict too.
	newest := res[2].Offset
	res = g.append(l, g.conditional("n.a", "4", newest), g.conditional("n.a", "5", newest))
	if res[0].Err != nil || !isConflict(res[1].Err, res[0].Offset) {
		g.Errorf("%+v", res)
	}
}

func conditionalTrimmed(g *rig) {
	l := g.open(engine.Config{MaxEvents: 5})
	gone := g.put(l, "n.a", "gone")
	g.fill(l, 20, "n.b")
	g.eventually("trimming", func() bool { return l.State().Oldest > gone.offset })
	if r := g.append(l, g.conditional("n.a", "1", gone.offset))[0]; !isConflict(r.Err, 0) {
		g.Errorf("expected a trimmed event: %+v", r)
	}
	if r := g.append(l, g.conditional("n.a", "2", 0))[0]; r.Err != nil {
		g.Errorf("expected nothing on a trimmed topic: %+v", r)
	}
}

func conditionalNone(g *rig) {
	l := g.open(engine.Config{})
	if r := g.append(l, g.conditional("n.a", "1", 0))[0]; !errors.Is(r.Err, engine.ErrNoHistory) {
		g.Errorf("%+v", r)
	}
}

func conditionalRace(g *rig) {
	l := g.open(engine.Config{})
	newest := uint64(0)
	for round := range 30 {
		const racers = 6
		var results [racers]engine.Result
		var group sync.WaitGroup
		for i := range racers {
			group.Go(func() {
				results[i] = g.append(l, g.conditional("n.a", fmt.Sprint(round, "-", i), newest))[0]
			})
		}
		group.Wait()
		won, offset := 0, uint64(0)
		for _, r := range results {
			if r.Err == nil {
				won, offset = won+1, r.Offset
			}
		}
		if won != 1 {
			g.Fatalf("round %d: %d won: %+v", round, won, results)
		}
		for _, r := range results {
			if r.Err != nil && !isConflict(r.Err, offset) {
				g.Errorf("round %d: a loser got %+v, the winner has offset %d", round, r, offset)
			}
		}
		newest = offset
	}
}

func appendCancelled(g *rig) {
	l := g.open(engine.Config{})
	ctx, cancel := context.WithCancel(g.ctx)
	cancel()
	res, err := l.Append(ctx, []engine.Entry{g.entry("n.a", "1", "1")}, engine.AppendEach)
	if err == nil && (len(res) != 1 || res[0].Err != nil) || err != nil && !errors.Is(err, context.Canceled) {
		g.Errorf("%+v, %v", res, err)
	}
	if r := g.append(l, g.entry("n.a", "2", "2"))[0]; r.Err != nil {
		g.Errorf("afterwards: %+v", r)
	}
}
