package enginetest

import (
	"fmt"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

var crashCases = []testCase{
	{"what is acknowledged outlives the process", durable, needCrash, outlivesProcess},
	{"what is acknowledged outlives a power loss", synced, needCrash, outlivesPowerLoss},
	{"what a power loss leaves is whole", durable, needCrash, powerLossIsWhole},
	{"positions of what was lost are refused", durable, needCrash, lostPositions},
	{"an epoch is durable before it is used", durable, needCrash, epochIsDurable},
	{"an older copy is noticed", durable, needCrash, olderCopy},
	{"ids outlive a crash", durable, needCrash, idsOutliveCrash},
	{"retention outlives a crash", durable, needCrash, retentionOutlivesCrash},
}

func (g *rig) sameAfterCrash(unsynced int) {
	g.Helper()
	l := g.open(engine.Config{})
	var list []known
	for range 3 {
		list = append(list, g.fill(l, 60, someTopics...)...)
		before := l.State()
		l = g.crash(unsynced)
		after := l.State()
		if after.Head != before.Head || after.Oldest != 1 || after.Epoch == before.Epoch {
			g.Fatalf("%+v became %+v", before, after)
		}
		g.same("after a crash", g.read(l, engine.ReadRequest{}), list)
		g.pageTopics(l, g.pattern("n.>"), 100, states(matching(list, g.pattern("n.>"), 0, after.Head)), list)
		g.positions(l, before.Epoch, before.Head)
	}
}

func outlivesProcess(g *rig) { g.sameAfterCrash(100) }

func outlivesPowerLoss(g *rig) { g.sameAfterCrash(0) }

// powerLossIsWhole: whatever is left is a beginning of the log, and every way to look at it agrees.
func powerLossIsWhole(g *rig) {
	l := g.open(engine.Config{})
	var list []known
	for round := range 6 {
		list = append(list, g.fill(l, 30, someTopics...)...)
		l = g.crash(20 * round)
		head := l.State().Head
		list = matching(list, topic.Pattern{}, 0, head)
		if uint64(len(list)) > head {
			g.Fatalf("%d events are left, the head is %d", len(list), head)
		}
		g.same("all", g.read(l, engine.ReadRequest{}), list)
		for _, pattern := range []string{"n.a", "n.>", "n.*.x"} {
			p := g.pattern(pattern)
			g.same(pattern, g.read(l, engine.ReadRequest{Pattern: p}), matching(list, p, 0, head))
		}
		p := g.pattern("n.>")
		g.pageTopics(l, p, 100, states(matching(list, p, 0, head)), list)
	}
}

func lostPositions(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 40, "n.a")
	before := l.State()
	l = g.crash(0)
	left := l.State().Head
	for range 3 {
		g.positions(l, before.Epoch, left)
		g.fill(l, 30, "n.a") // offsets are used again, and the old positions stay refused
	}
	l = g.restart()
	g.positions(l, before.Epoch, left)
}

// epochIsDurable: clients may hold a position as soon as the log is open.
func epochIsDurable(g *rig) {
	l := g.open(engine.Config{})
	var epochs []string
	for range 4 {
		epochs = append(epochs, l.State().Epoch)
		l = g.crash(0)
		for _, e := range epochs {
			g.positions(l, e, 0)
		}
	}
}

// olderCopy: a backup is restored, and clients come with positions it never had.
func olderCopy(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 20, "n.a")
	before := l.State()
	backup := g.storage.Crash(100, newRand(1))
	g.fill(l, 20, "n.a")
	l = g.restart()
	later := l.State()
	g.fill(l, 5, "n.a")
	g.close()
	g.storage = backup
	l = g.open(g.cfg)
	if s := l.State(); s.Head != before.Head || s.Epoch == before.Epoch || s.Epoch == later.Epoch {
		g.Errorf("%+v was restored as %+v", before, s)
	}
	g.same("the copy", g.read(l, engine.ReadRequest{}), list)
	for range 2 {
		g.positions(l, before.Epoch, before.Head)
		for _, offset := range []uint64{before.Head + 1, later.Head, later.Head + 5} {
			if err := l.Check(engine.Position{Epoch: later.Epoch, Offset: offset}); !isEpochChanged(err, l.State()) {
				g.Errorf("position %s:%d: %v", later.Epoch, offset, err)
			}
		}
		g.fill(l, 50, "n.a")
	}
}

func idsOutliveCrash(g *rig) {
	l := g.open(engine.Config{MaxEvents: 10})
	unsynced := 100
	if g.history == engine.HistoryDisk {
		unsynced = 0
	}
	var first []engine.Result
	for i := range 30 {
		first = append(first, g.append(l, g.dedup("n.a", fmt.Sprint(i), "x"))[0])
	}
	for range 2 {
		l = g.crash(unsynced)
		for i, f := range first {
			g.again(l, "after a crash", g.dedup("n.a", fmt.Sprint(i), "x"), f)
		}
	}
}

func retentionOutlivesCrash(g *rig) {
	const keep = 10
	l := g.open(engine.Config{MaxEvents: keep})
	var list []known
	for round := range 5 {
		list = append(list, g.fill(l, 50, "n.a", "n.b")...)
		l = g.crash(25 * round)
		list = matching(list, topic.Pattern{}, 0, l.State().Head)
		g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= keep })
		n := g.retained(l, list)
		if want := min(keep, len(list)); n > want || n < want && g.history == engine.HistoryDisk {
			g.Errorf("%d events, want %d", n, want)
		}
	}
}
