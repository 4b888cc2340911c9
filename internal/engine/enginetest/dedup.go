package enginetest

import (
	"fmt"
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

var dedupCases = []testCase{
	{"an id is stored once", all, 0, storedOnce},
	{"an id not chosen by the publisher is not looked at", all, 0, notChosen},
	{"a duplicate wins over a conflict", kept, 0, duplicateWins},
	{"a refused event is not remembered", kept, 0, refusedForgotten},
	{"concurrent publishes of an id are stored once", all, 0, concurrentDuplicates},
	{"ids outlive trimming", kept, 0, idsOutliveTrimming},
	{"ids outlive a restart", durable, 0, idsOutliveRestart},
	{"the window ends", all, needClock, windowEnds},
	{"the window ends across a restart", durable, needClock, windowEndsAcrossRestart},
	{"the number of ids is bounded", all, needIDBound, idsAreBounded},
}

// again sends an event a second time and expects the first result.
func (g *rig) again(l engine.Log, when string, e engine.Entry, first engine.Result) {
	g.Helper()
	r := g.append(l, e)[0]
	if r.Err != nil || !r.Duplicate || r.Offset != first.Offset || r.Timestamp != first.Timestamp {
		g.Errorf("%s: %+v, want a duplicate of %+v", when, r, first)
	}
}

func (g *rig) anew(l engine.Log, when string, e engine.Entry) engine.Result {
	g.Helper()
	r := g.append(l, e)[0]
	if r.Err != nil || r.Duplicate {
		g.Errorf("%s: %+v, want it stored anew", when, r)
	}
	return r
}

func storedOnce(g *rig) {
	l := g.open(engine.Config{})
	res := g.append(l, g.dedup("n.a", "1", "x"), g.dedup("n.a", "1", "other"), g.dedup("n.a", "2", "y"))
	if res[0].Duplicate || !res[1].Duplicate || res[1].Offset != res[0].Offset || res[1].Timestamp != res[0].Timestamp || res[2].Duplicate {
		g.Errorf("one call: %+v", res)
	}
	g.again(l, "another call", g.dedup("n.a", "1", "x"), res[0])
	g.anew(l, "another topic", g.dedup("n.b", "1", "x"))
	g.anew(l, "another id", g.dedup("n.a", "b1", "x"))
	g.anew(l, "a topic and an id that run together the same way", g.dedup("n.ab", "1", "x"))
	g.anew(g.log("other"), "another namespace", g.dedup("other.a", "1", "x"))
	if g.history != engine.HistoryNone {
		if got := g.read(l, engine.ReadRequest{Pattern: g.pattern("n.a")}); len(got) != 3 {
			g.Errorf("%d events are stored, want 3", len(got))
		}
	}
}

func notChosen(g *rig) {
	l := g.open(engine.Config{})
	g.anew(l, "first", g.entry("n.a", "1", "x"))
	g.anew(l, "second", g.entry("n.a", "1", "x"))
	g.anew(l, "now chosen", g.dedup("n.a", "1", "x"))
}

func duplicateWins(g *rig) {
	l := g.open(engine.Config{})
	first := g.append(l, g.dedup("n.a", "1", "x"))[0]
	g.fill(l, 5, "n.a")
	e := g.dedup("n.a", "1", "x")
	e.Conditional, e.Expected = true, 0 // held once, and no longer does
	g.again(l, "with a condition", e, first)
}

func refusedForgotten(g *rig) {
	l := g.open(engine.Config{})
	e := g.dedup("n.a", "1", "x")
	e.Conditional, e.Expected = true, 9
	if r := g.append(l, e)[0]; !isConflict(r.Err, 0) {
		g.Fatalf("%+v", r)
	}
	e = g.dedup("n.a", "1", "x")
	e.Conditional = true
	g.anew(l, "after a refusal", e)
}

func concurrentDuplicates(g *rig) {
	l := g.open(engine.Config{})
	for id := range 20 {
		const racers = 6
		var results [racers]engine.Result
		var group sync.WaitGroup
		for i := range racers {
			group.Go(func() { results[i] = g.append(l, g.dedup("n.a", fmt.Sprint(id), "x"))[0] })
		}
		group.Wait()
		fresh := 0
		for _, r := range results {
			if !r.Duplicate {
				fresh++
			}
			if r.Err != nil || r.Offset != results[0].Offset || r.Timestamp != results[0].Timestamp {
				g.Errorf("%+v beside %+v", r, results[0])
			}
		}
		if fresh != 1 {
			g.Errorf("%d of %d were stored", fresh, racers)
		}
	}
}

func idsOutliveTrimming(g *rig) {
	l := g.open(engine.Config{MaxEvents: 3})
	first := g.append(l, g.dedup("n.a", "1", "x"))[0]
	g.fill(l, 50, "n.b")
	g.eventually("trimming", func() bool { return l.State().Oldest > first.Offset })
	g.again(l, "after trimming", g.dedup("n.a", "1", "x"), first)
	if g.history != engine.HistoryMemory {
		l = g.restart()
		if g.f.External { // it is gone with the event, and with the process that saw it
			first.Timestamp = 0
		}
		g.again(l, "after trimming and a restart", g.dedup("n.a", "1", "x"), first)
	}
}

func idsOutliveRestart(g *rig) {
	l := g.open(engine.Config{})
	var first []engine.Result
	for i := range 20 {
		first = append(first, g.append(l, g.dedup("n.a", fmt.Sprint(i), "x"))[0])
	}
	for range 3 {
		l = g.restart()
		for i, f := range first {
			g.again(l, "after a restart", g.dedup("n.a", fmt.Sprint(i), "x"), f)
		}
	}
	g.anew(l, "a new id after a restart", g.dedup("n.a", "new", "x"))
}

func windowEnds(g *rig) {
	l := g.open(engine.Config{DedupWindow: time.Minute})
	first := g.append(l, g.dedup("n.a", "1", "x"))[0]
	g.clock.move(59 * time.Second)
	g.again(l, "inside the window", g.dedup("n.a", "1", "x"), first)
	g.clock.move(2 * time.Second) // a retry does not prolong it
	second := g.anew(l, "behind the window", g.dedup("n.a", "1", "x"))
	g.clock.move(59 * time.Second)
	g.append(l, g.dedup("n.a", "2", "x")) // makes the engine forget what is old
	g.again(l, "inside the second window", g.dedup("n.a", "1", "x"), second)
}

func windowEndsAcrossRestart(g *rig) {
	l := g.open(engine.Config{DedupWindow: time.Minute})
	first := g.append(l, g.dedup("n.a", "1", "x"))[0]
	g.clock.move(59 * time.Second)
	g.again(g.restart(), "inside the window", g.dedup("n.a", "1", "x"), first)
	g.clock.move(2 * time.Second)
	second := g.anew(g.restart(), "behind the window", g.dedup("n.a", "1", "x"))
	g.again(g.restart(), "inside the second window", g.dedup("n.a", "1", "x"), second)
}

func idsAreBounded(g *rig) {
	const bound = 10
	l := g.open(engine.Config{DedupIDs: bound})
	var results []engine.Result
	for i := range 5 * bound {
		results = append(results, g.append(l, g.dedup("n.a", fmt.Sprint(i), "x"))[0])
	}
	for i := 4 * bound; i < 5*bound; i++ {
		g.again(l, fmt.Sprintf("number %d of %d", i, 5*bound), g.dedup("n.a", fmt.Sprint(i), "x"), results[i])
	}
	g.anew(l, "the oldest id of all", g.dedup("n.a", "0", "x"))
}
