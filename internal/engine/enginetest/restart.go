package enginetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

var restartCases = []testCase{
	{"events outlive a restart", durable, 0, eventsOutliveRestart},
	{"positions outlive restarts", durable, 0, positionsOutliveRestarts},
	{"nothing outlives a restart", memory, needInside, nothingOutlivesRestart},
	{"epochs without history", none, 0, epochsNone},
	{"Check", kept, 0, check},
	{"namespaces", all, 0, namespaces},
	{"unknown namespaces", all, 0, unknownNamespaces},
	{"a closed engine", all, 0, closed},
	{"closing under load", all, 0, closeUnderLoad},
}

func isEpochChanged(err error, s engine.State) bool {
	var changed *engine.EpochChangedError
	return errors.As(err, &changed) && changed.Epoch == s.Epoch
}

// positions checks which offsets of an epoch are valid: those up to last.
func (g *rig) positions(l engine.Log, epoch string, last uint64) {
	g.Helper()
	s := l.State()
	for offset := s.Oldest - 1; offset <= last+3; offset++ {
		err := l.Check(engine.Position{Epoch: epoch, Offset: offset})
		if offset <= last && err != nil || offset > last && !isEpochChanged(err, s) {
			g.Errorf("position %s:%d, of which %d is the last offset, in %+v: %v", epoch, offset, last, s, err)
		}
	}
}

func eventsOutliveRestart(g *rig) {
	l := g.open(engine.Config{})
	var list []known
	for range 3 {
		list = append(list, g.fill(l, 100, someTopics...)...)
		before := l.State()
		l = g.restart()
		after := l.State()
		if after.Head != before.Head || after.Oldest != before.Oldest || !g.sameEpoch(before, after) || !epochForm.MatchString(after.Epoch) {
			g.Errorf("%+v became %+v", before, after)
		}
		for _, pattern := range []string{"n.>", "n.a", "n.*.x"} {
			p := g.pattern(pattern)
			g.same(pattern, g.read(l, engine.ReadRequest{Pattern: p}), matching(list, p, 0, 1<<62))
		}
		if next := g.put(l, "n.a", fmt.Sprint("next", len(list))); next.offset <= before.Head {
			g.Errorf("offset %d behind %d", next.offset, before.Head)
		} else {
			list = append(list, next)
		}
	}
	g.same("a tail from the beginning", g.next(g.tail(l, 0), len(list)), list)
}

// positionsOutliveRestarts: each epoch's positions stay valid up to its last offset.
func positionsOutliveRestarts(g *rig) {
	type stretch struct {
		epoch string
		last  uint64
	}
	l := g.open(engine.Config{})
	var stretches []stretch
	seen := map[string]bool{}
	for i := range 5 {
		if i != 2 { // an epoch may be empty
			g.fill(l, 7, "n.a")
		}
		s := l.State()
		switch {
		case !g.f.External:
			if seen[s.Epoch] {
				g.Errorf("epoch %s comes again", s.Epoch)
			}
			seen[s.Epoch] = true
			stretches = append(stretches, stretch{s.Epoch, s.Head})
		case len(stretches) > 0 && s.Epoch != stretches[0].epoch:
			g.Errorf("epoch %s became %s", stretches[0].epoch, s.Epoch)
		default: // there is one stretch, and it grows
			stretches = []stretch{{s.Epoch, s.Head}}
		}
		for _, st := range stretches {
			g.positions(l, st.epoch, st.last)
		}
		l = g.restart()
		g.fill(l, 4, "n.a")
		if g.f.External {
			stretches[0].last = l.State().Head
		}
		for _, st := range stretches {
			g.positions(l, st.epoch, st.last)
		}
		g.positions(l, "", l.State().Head)
	}
}

func nothingOutlivesRestart(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 30, "n.a", "n.b")
	first := g.append(l, g.dedup("n.a", "1", "x"))[0]
	before := l.State()
	l = g.restart()
	after := l.State()
	if after.Head != 0 || after.Oldest != 1 || after.Epoch == before.Epoch {
		g.Errorf("%+v became %+v", before, after)
	}
	if got := g.read(l, engine.ReadRequest{}); len(got) > 0 {
		g.Errorf("%d events", len(got))
	}
	for _, offset := range []uint64{0, 1, before.Head} {
		if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: offset}); !isEpochChanged(err, after) {
			g.Errorf("position %s:%d: %v", before.Epoch, offset, err)
		}
	}
	if r := g.append(l, g.dedup("n.a", "1", "x"))[0]; r.Duplicate || r.Offset != 1 {
		g.Errorf("%+v, want it stored anew (first %+v)", r, first)
	}
}

func epochsNone(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 10, "n.a")
	before := l.State()
	if err := l.Check(engine.Position{Epoch: before.Epoch}); err != nil {
		g.Errorf("the current position: %v", err)
	}
	if err := l.Check(engine.Position{}); err != nil {
		g.Errorf("the current position without its epoch: %v", err)
	}
	if err := l.Check(engine.Position{Epoch: "0123456789abcdef"}); !isEpochChanged(err, before) {
		g.Errorf("a foreign epoch: %v", err)
	}
	l = g.restart()
	if after := l.State(); after.Epoch == before.Epoch {
		g.Errorf("%+v became %+v", before, after)
	} else if err := l.Check(engine.Position{Epoch: before.Epoch}); !isEpochChanged(err, after) {
		g.Errorf("the epoch before: %v", err)
	}
}

func check(g *rig) {
	l := g.open(engine.Config{})
	s := l.State()
	if err := l.Check(engine.Position{Epoch: s.Epoch}); err != nil {
		g.Errorf("the beginning of an empty log: %v", err)
	}
	g.fill(l, 20, "n.a", "n.b")
	s = l.State()
	g.positions(l, s.Epoch, s.Head)
	g.positions(l, "", s.Head)
	for _, p := range []engine.Position{
		{Epoch: "0123456789abcdef", Offset: 3}, {Epoch: "x", Offset: 3}, {Epoch: s.Epoch[:15], Offset: 3}, {Epoch: s.Epoch, Offset: 1<<64 - 1}, {Offset: 1<<64 - 1},
	} {
		if err := l.Check(p); !isEpochChanged(err, s) {
			g.Errorf("%+v: %v", p, err)
		}
	}
	other := g.log("other")
	g.put(other, "other.a", "x")
	if other.State().Epoch != s.Epoch { // engines may have one epoch for all their logs
		if err := other.Check(engine.Position{Epoch: s.Epoch, Offset: 1}); !isEpochChanged(err, other.State()) {
			g.Errorf("another namespace's position: %v", err)
		}
	}
}

func namespaces(g *rig) {
	l := g.open(engine.Config{})
	other := g.log("other")
	if l.Namespace() != namespace || other.Namespace() != "other" {
		g.Errorf("%q and %q", l.Namespace(), other.Namespace())
	}
	mine, others := g.tail(l, 0), g.tail(other, 0)
	a := g.put(l, "n.a", "mine")
	b := g.put(other, "other.a", "other")
	c := g.put(g.log(namespace), "n.b", "the same log")
	got, gotOther := g.next(mine, 2), g.next(others, 1)
	if got[0].Topic != a.name || got[1].Topic != c.name || gotOther[0].Topic != b.name {
		g.Errorf("%+v and %+v", got, gotOther)
	}
	if g.history == engine.HistoryNone {
		return
	}
	g.same("one", g.read(l, engine.ReadRequest{}), []known{a, c})
	g.same("the other", g.read(other, engine.ReadRequest{}), []known{b})
	if g.history == engine.HistoryMemory {
		return
	}
	l = g.restart()
	g.same("one, after a restart", g.read(l, engine.ReadRequest{}), []known{a, c})
	g.same("the other, after a restart", g.read(g.log("other"), engine.ReadRequest{}), []known{b})
}

func unknownNamespaces(g *rig) {
	g.open(engine.Config{})
	for _, name := range []string{unknown, "", "a.b", "*", ">", "a b", "a/b", "\x00"} {
		if _, err := g.eng.Log(name); !errors.Is(err, engine.ErrUnknownNamespace) {
			g.Errorf("%q: %v", name, err)
		}
	}
}

func closed(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 10, "n.a")
	eng := g.eng
	g.close()
	if err := eng.Close(); err != nil {
		g.Errorf("a second Close: %v", err)
	}
	_, err := eng.Log(namespace)
	g.isClosed("Log", err)
	_, err = eng.Log("never-opened")
	g.isClosed("Log of a new namespace", err)
	_, err = l.Append(g.ctx, []engine.Entry{g.entry("n.a", "1", "x")}, engine.AppendEach)
	g.isClosed("Append", err)
	_, err = l.Tail(0)
	g.isClosed("Tail", err)
	_, err = l.Read(g.ctx, engine.ReadRequest{})
	g.isClosed("Read", err)
	if g.history == engine.HistoryNone {
		return
	}
	p := g.pattern("n.>")
	_, err = l.ReadAt(g.ctx, []uint64{1}, 100)
	g.isClosed("ReadAt", err)
	_, err = l.LastOffsets(g.ctx, p, 10, 10)
	g.isClosed("LastOffsets", err)
	_, err = l.AfterLast(g.ctx, p, 3, 10)
	g.isClosed("AfterLast", err)
	_, err = l.BeforeTime(g.ctx, 1)
	g.isClosed("BeforeTime", err)
	_, _, err = l.Topic(g.ctx, g.name("n.a"))
	g.isClosed("Topic", err)
	_, _, err = l.Topics(g.ctx, p, "", 10)
	g.isClosed("Topics", err)
}

func (g *rig) isClosed(what string, err error) {
	g.Helper()
	if !errors.Is(err, engine.ErrClosed) {
		g.Errorf("%s after Close: %v, want ErrClosed", what, err)
	}
}

// closeUnderLoad closes while everything is being used: every call ends, and what was acknowledged is there.
func closeUnderLoad(g *rig) {
	l := g.open(engine.Config{})
	acked := make([][]known, 4)
	started := make(chan struct{}, len(acked))
	var group sync.WaitGroup
	for w := range acked {
		group.Go(func() {
			for i := 0; ; i++ {
				k := known{name: g.name(fmt.Sprintf("n.%d", w)), id: fmt.Sprint(w, "-", i), payload: "x"}
				res, err := l.Append(g.ctx, []engine.Entry{g.entry(k.name.String(), k.id, k.payload)}, engine.AppendEach)
				if err != nil {
					g.isClosed("Append", err)
					return
				}
				k.offset, k.time = res[0].Offset, res[0].Timestamp
				if acked[w] = append(acked[w], k); i == 20 {
					started <- struct{}{}
				}
			}
		})
	}
	tail := g.tail(l, 0)
	group.Go(func() {
		for {
			if _, err := tail.Next(g.ctx); err != nil {
				g.isClosed("Next", err)
				return
			}
		}
	})
	group.Go(func() {
		for {
			if _, err := l.Read(g.ctx, engine.ReadRequest{MaxEvents: 50}); err != nil {
				g.isClosed("Read", err)
				return
			}
		}
	})
	for range acked {
		<-started
	}
	g.close()
	group.Wait()
	if g.history == engine.HistoryMemory || g.history == engine.HistoryNone {
		return
	}
	l = g.open(g.cfg)
	for _, list := range acked {
		p := list[0].name.Pattern()
		got := g.read(l, engine.ReadRequest{Pattern: p})
		if len(got) < len(list) {
			g.Errorf("%s: %d events were acknowledged, %d are there", p, len(list), len(got))
			continue
		}
		g.same("acknowledged before Close", got[:len(list)], list)
	}
}
