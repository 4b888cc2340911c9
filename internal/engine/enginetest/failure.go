package enginetest

import (
	"errors"
	"fmt"

	"github.com/runnelhq/runnel/internal/engine"
)

var failureCases = []testCase{
	{"a failed write is never acknowledged", durable, needFail, failedWrite},
	{"reads go on while writes fail", durable, needFail, readsGoOn},
	{"a full disk refuses, and recovers", durable, needFull, fullDisk},
}

// recovered waits until an append succeeds again, and returns its result.
func (g *rig) recovered(l engine.Log, e func() engine.Entry) (r engine.Result) {
	g.Helper()
	g.eventually("recovery", func() bool {
		res, err := l.Append(g.ctx, []engine.Entry{e()}, engine.AppendEach)
		if err != nil {
			if !errors.Is(err, engine.ErrStorageFailed) {
				g.Fatalf("append to failed storage: %v", err)
			}
			return false
		}
		r = res[0]
		return true
	})
	if err := g.eng.Health(); err != nil {
		g.Errorf("health after the recovery: %v", err)
	}
	return r
}

// failedWrite makes one write or sync after another fail, and looks at the event that was being appended: it is there once or
// not at all, and everything acknowledged stays.
func failedWrite(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 5, "n.a")
	for after := range 4 {
		id := fmt.Sprint("retried-", after)
		failed := false
		g.storage.Fail(after, 1)
		for i := 0; !failed; i++ {
			before := l.State()
			t := g.tail(l, before.Head)
			res, err := l.Append(g.ctx, []engine.Entry{g.dedup("n.b", fmt.Sprint(id, "-", i), "x")}, engine.AppendEach)
			if err == nil && i < 50 {
				t.Close()
				list = append(list, known{res[0].Offset, g.name("n.b"), fmt.Sprint(id, "-", i), "x", res[0].Timestamp})
				continue
			}
			failed = true
			if !errors.Is(err, engine.ErrStorageFailed) {
				g.Fatalf("with failing storage: %v", err)
			}
			g.tailEnds(t, before)
			r := g.recovered(l, func() engine.Entry { return g.dedup("n.b", fmt.Sprint(id, "-", i), "x") })
			if l.State().Epoch == before.Epoch || r.Err != nil || r.Offset != before.Head+1 {
				g.Errorf("%+v became %+v, and the event sent again got %+v", before, l.State(), r)
			}
			list = append(list, known{r.Offset, g.name("n.b"), fmt.Sprint(id, "-", i), "x", r.Timestamp})
		}
		g.same("after a failure", g.read(l, engine.ReadRequest{}), list)
	}
	g.same("after a restart", g.read(g.restart(), engine.ReadRequest{}), list)
}

// tailEnds expects a tail to end because the log is reopened, without having seen anything.
func (g *rig) tailEnds(t engine.Tail, before engine.State) {
	g.Helper()
	p, err := t.Next(g.ctx)
	var changed *engine.EpochChangedError
	if !errors.As(err, &changed) || changed.Epoch == before.Epoch {
		g.Errorf("a tail over a failure: %d events, %v, want EpochChangedError", len(p.Events), err)
	}
	t.Close()
}

func readsGoOn(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 100, someTopics...)
	head := l.State().Head
	g.storage.Fail(0, 1<<30)
	for i := range 3 {
		res, err := l.Append(g.ctx, []engine.Entry{g.dedup("n.new", fmt.Sprint(i), "x")}, engine.AppendEach)
		if !errors.Is(err, engine.ErrStorageFailed) {
			g.Fatalf("append: %+v, %v", res, err)
		}
		for _, pattern := range []string{"n.>", "n.a"} {
			p := g.pattern(pattern)
			g.same(pattern, g.read(l, engine.ReadRequest{Pattern: p, To: head}), matching(list, p, 0, head))
		}
	}
	g.storage.Fail(0, 0)
	r := g.recovered(l, func() engine.Entry { return g.dedup("n.new", "last", "x") })
	if r.Offset <= head {
		g.Errorf("offset %d behind %d", r.Offset, head)
	}
	g.same("after the recovery", g.read(l, engine.ReadRequest{To: head}), list)
}

func fullDisk(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 50, "n.a")
	before := l.State()
	g.storage.Full(true)
	g.eventually("STORAGE_FULL", func() bool { return errors.Is(g.eng.Health(), engine.ErrStorageFull) })
	res, err := l.Append(g.ctx, []engine.Entry{g.dedup("n.a", "1", "x")}, engine.AppendEach)
	if !errors.Is(err, engine.ErrStorageFull) {
		g.Errorf("append to a full disk: %+v, %v", res, err)
	}
	g.same("on a full disk", g.read(l, engine.ReadRequest{}), list)
	g.storage.Full(false)
	g.eventually("recovery", func() bool { return g.eng.Health() == nil })
	g.anew(l, "refused on the full disk", g.dedup("n.a", "1", "x"))
	if after := l.State(); after.Epoch != before.Epoch || after.Head != before.Head+1 {
		g.Errorf("%+v became %+v", before, after)
	}
}
