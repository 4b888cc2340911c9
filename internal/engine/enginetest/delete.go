package enginetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
)

var deleteCases = []testCase{
	{"a deleted namespace begins anew", all, 0, deletedBeginsAnew},
	{"the log of a deleted namespace is over", all, 0, deletedIsOver},
	{"deleting ends tails", all, 0, deletedTails},
	{"deleting leaves other namespaces alone", all, 0, deletedApart},
	{"deleting what is not there", all, 0, deleteNothing},
	{"deleting under load", all, 0, deleteUnderLoad},
	{"a deletion outlives a restart", durable, 0, deletionRestart},
	{"deleting what is not open", durable, 0, deleteUnopened},
	{"deleting what is no longer configured", durable, 0, deleteUnconfigured},
	{"a deletion outlives a crash", durable, needCrash, deletionCrash},
	{"a crash in a deletion leaves all or nothing", durable, needCrash, crashInDeletion},
	{"a deletion that fails is done or not", durable, needFail, failedDeletion},
	{"deleting on a full disk", durable, needFull, deleteOnFullDisk},
}

func (g *rig) delete(name string) {
	g.Helper()
	if err := g.eng.Delete(g.ctx, name); err != nil {
		g.Fatalf("delete %q: %v", name, err)
	}
}

func (g *rig) isDeleted(what string, err error) {
	g.Helper()
	if !errors.Is(err, engine.ErrDeleted) {
		g.Errorf("%s of a deleted namespace: %v, want ErrDeleted", what, err)
	}
}

// empty checks that nothing is known in l of what was there before.
func (g *rig) empty(l engine.Log, before engine.State) {
	g.Helper()
	s := l.State()
	if s.Head != 0 || s.Oldest != 1 || s.Epoch == before.Epoch || !epochForm.MatchString(s.Epoch) {
		g.Errorf("%+v was deleted, and became %+v", before, s)
	}
	if got := g.read(l, engine.ReadRequest{}); len(got) > 0 {
		g.Errorf("%d events outlived their namespace", len(got))
	}
	for _, offset := range []uint64{0, 1, before.Head, before.Head + 1} {
		if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: offset}); !isEpochChanged(err, s) {
			g.Errorf("position %s:%d of a deleted namespace: %v", before.Epoch, offset, err)
		}
	}
	if topics, more, err := l.Topics(g.ctx, g.pattern("n.>"), "", 10); len(topics) > 0 || more || err != nil {
		g.Errorf("topics outlived their namespace: %v, %v, %v", topics, more, err)
	}
}

func deletedBeginsAnew(g *rig) {
	l := g.open(engine.Config{})
	for range 3 {
		list := g.fill(l, 60, someTopics...)
		g.append(l, g.dedup("n.a", "1", "x"))
		before := l.State()
		g.delete(namespace)
		l = g.log(namespace)
		g.empty(l, before)
		r := g.append(l, g.dedup("n.a", "1", "y"))[0]
		if r.Duplicate || r.Offset != 1 && g.history != engine.HistoryNone {
			g.Errorf("an event whose id was deleted: %+v, want it stored at offset 1", r)
		}
		if g.history == engine.HistoryNone {
			continue
		}
		if r := g.append(l, g.conditional(list[0].name.String()+".new", "2", 0))[0]; r.Err != nil || r.Offset != 2 {
			g.Errorf("the first event of a topic, expecting none: %+v", r)
		}
		// The old positions are refused for good, also once their offsets are used again.
		g.fill(l, 70, "n.a")
		for _, offset := range []uint64{0, 1, before.Head} {
			if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: offset}); !isEpochChanged(err, l.State()) {
				g.Errorf("position %s:%d: %v", before.Epoch, offset, err)
			}
		}
	}
}

func deletedIsOver(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 10, "n.a")
	before := l.State()
	g.delete(namespace)
	for _, when := range []string{"deleted", "begun anew"} {
		if s := l.State(); s != before || l.Namespace() != namespace {
			g.Errorf("%s: %+v became %+v", when, before, s)
		}
		_, err := l.Append(g.ctx, []engine.Entry{g.entry("n.a", "1", "x")}, engine.AppendEach)
		g.isDeleted("Append", err)
		_, err = l.Tail(0)
		g.isDeleted("Tail", err)
		_, err = l.Read(g.ctx, engine.ReadRequest{})
		g.isDeleted("Read", err)
		g.isDeleted("Check", l.Check(engine.Position{}))
		g.isDeleted("Check", l.Check(engine.Position{Epoch: before.Epoch, Offset: before.Head}))
		if g.history != engine.HistoryNone {
			g.lookupsAreOver(l)
		}
		g.put(g.log(namespace), "n.a", when)
	}
}

func (g *rig) lookupsAreOver(l engine.Log) {
	g.Helper()
	p := g.pattern("n.>")
	_, err := l.ReadAt(g.ctx, []uint64{1}, 100)
	g.isDeleted("ReadAt", err)
	_, err = l.LastOffsets(g.ctx, p, 10, 10)
	g.isDeleted("LastOffsets", err)
	_, err = l.AfterLast(g.ctx, p, 3, 10)
	g.isDeleted("AfterLast", err)
	_, err = l.BeforeTime(g.ctx, 1)
	g.isDeleted("BeforeTime", err)
	_, _, err = l.Topic(g.ctx, g.name("n.a"))
	g.isDeleted("Topic", err)
	_, _, err = l.Topics(g.ctx, p, "", 10)
	g.isDeleted("Topics", err)
	_, err = l.Trim(g.ctx, 1)
	g.isDeleted("Trim", err)
}

// deletedTails: those that wait, and those that are behind.
func deletedTails(g *rig) {
	l := g.open(engine.Config{})
	waiting, behind := g.tail(l, 0), g.tail(l, 0)
	list := g.fill(l, 30, "n.a")
	g.next(waiting, len(list))
	over := make(chan error, 1)
	var next sync.WaitGroup
	next.Go(func() {
		_, err := waiting.Next(g.ctx)
		over <- err
	})
	g.delete(namespace)
	g.isDeleted("Next", <-over)
	next.Wait()
	for range 2 {
		_, err := behind.Next(g.ctx)
		g.isDeleted("Next of a tail that is behind", err)
	}
	waiting.Close()
	if _, err := waiting.Next(g.ctx); !errors.Is(err, engine.ErrClosed) {
		g.Errorf("a closed tail of a deleted namespace: %v", err)
	}
	l = g.log(namespace)
	t := g.tail(l, 0)
	k := g.put(l, "n.a", "new")
	if got := g.next(t, 1); got[0].Topic != k.name || got[0].Timestamp != k.time {
		g.Errorf("a tail of the new log: %+v, want %+v", got[0], k)
	}
}

func deletedApart(g *rig) {
	l := g.open(engine.Config{})
	other := g.log("other")
	t := g.tail(other, 0)
	g.fill(l, 20, "n.a")
	before := other.State()
	list := []known{g.put(other, "other.a", "1"), g.put(other, "other.b", "2")}
	g.delete(namespace)
	g.put(g.log(namespace), "n.a", "new")
	list = append(list, g.put(other, "other.a", "3"))
	if s := other.State(); s.Epoch != before.Epoch || s.Head != 3 {
		g.Errorf("another namespace: %+v became %+v", before, s)
	}
	got := g.next(t, len(list))
	if g.history == engine.HistoryNone {
		return
	}
	g.same("a tail of another namespace", got, list)
	g.same("another namespace", g.read(other, engine.ReadRequest{}), list)
	if g.history != engine.HistoryMemory {
		g.restart()
		g.same("another namespace, after a restart", g.read(g.log("other"), engine.ReadRequest{}), list)
	}
}

func (g *rig) isUnknown(name string) {
	g.Helper()
	if err := g.eng.Delete(g.ctx, name); !errors.Is(err, engine.ErrUnknownNamespace) {
		g.Errorf("delete %q: %v, want ErrUnknownNamespace", name, err)
	}
}

func deleteNothing(g *rig) {
	l := g.open(engine.Config{})
	for _, name := range []string{unknown, "", "a.b", "*", ">", "a b", "never-used"} {
		g.isUnknown(name)
	}
	g.put(l, "n.a", "x")
	g.delete(namespace)
	g.isUnknown(namespace)
	g.put(g.log(namespace), "n.a", "x")
	g.delete(namespace)
	g.log(namespace) // open and empty: there is something to delete
	g.delete(namespace)
	g.put(g.log("never-used"), "never-used.a", "x")
	eng := g.eng
	g.close()
	for _, name := range []string{namespace, "never-used", "other"} {
		g.isClosed("Delete", eng.Delete(g.ctx, name))
	}
}

func deletionRestart(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 50, someTopics...)
	before := l.State()
	g.delete(namespace)
	l = g.restart()
	g.empty(l, before)
	g.fill(l, 20, someTopics...)
	g.delete(namespace)
	l = g.log(namespace)
	list := g.fill(l, 10, someTopics...)
	s := l.State()
	l = g.restart()
	g.same("what came behind a deletion", g.read(l, engine.ReadRequest{}), list)
	g.positions(l, s.Epoch, s.Head)
	if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: 1}); !isEpochChanged(err, l.State()) {
		g.Errorf("a position from before the deletion: %v", err)
	}
}

func deleteUnopened(g *rig) {
	g.open(engine.Config{})
	other := g.log("other")
	g.put(other, "other.a", "x")
	before := other.State()
	g.restart()
	g.delete("other")
	g.isUnknown("other")
	g.empty(g.log("other"), before)
	g.restart()
	g.empty(g.log("other"), before)
}

func deleteUnconfigured(g *rig) {
	g.open(engine.Config{})
	other := g.log("other")
	g.put(other, "other.a", "x")
	before := other.State()
	g.unconfigured = "other"
	g.restart()
	if _, err := g.eng.Log("other"); !errors.Is(err, engine.ErrUnknownNamespace) {
		g.Errorf("a namespace that is no longer configured: %v", err)
	}
	g.delete("other")
	g.isUnknown("other")
	g.unconfigured = ""
	g.restart()
	g.empty(g.log("other"), before)
}

func deletionCrash(g *rig) {
	l := g.open(engine.Config{})
	for _, unsynced := range []int{100, 0, 50} {
		if g.history == engine.HistoryOS {
			unsynced = 100
		}
		g.fill(l, 30, someTopics...)
		before := l.State()
		g.delete(namespace)
		l = g.crash(unsynced)
		g.empty(l, before)
	}
}

// crashInDeletion: the crash comes while the deletion is under way.
func crashInDeletion(g *rig) {
	rng := newRand(1)
	l := g.open(engine.Config{})
	var list []known
	for range 8 {
		list = append(list, g.fill(l, 40, someTopics...)...)
		before := l.State()
		unsynced := 100
		if g.history == engine.HistoryDisk {
			unsynced = rng.IntN(101)
		}
		var deleting sync.WaitGroup
		deleting.Go(func() {
			if err := g.eng.Delete(g.ctx, namespace); err != nil {
				g.Errorf("delete: %v", err)
			}
		})
		after := g.storage.Crash(unsynced, rng)
		deleting.Wait()
		g.close()
		g.storage = after
		if l = g.open(g.cfg); l.State().Head == 0 {
			g.empty(l, before)
			list = nil
			continue
		}
		g.same("not deleted", g.read(l, engine.ReadRequest{}), list)
		g.positions(l, before.Epoch, before.Head)
	}
}

// failedDeletion: after an error the namespace is there or gone, and before that is known nobody reads a part of it.
func failedDeletion(g *rig) {
	l := g.open(engine.Config{})
	var list []known
	for after := range 4 {
		list = append(list, g.fill(l, 20, "n.a", "n.b")...)
		before := l.State()
		g.storage.Fail(after, 1)
		err := g.eng.Delete(g.ctx, namespace)
		g.storage.Fail(0, 0)
		if err != nil {
			if !errors.Is(err, engine.ErrStorageFailed) {
				g.Fatalf("delete on failing storage: %v", err)
			}
			p, err := l.Read(g.ctx, engine.ReadRequest{To: before.Head})
			if err == nil && p.Scanned > 0 {
				g.same("between failure and recovery", p.Events, list)
			}
		}
		done := err == nil
		g.eventually("recovery", func() bool {
			l, err = g.eng.Log(namespace)
			return err == nil
		})
		id := fmt.Sprint("recovered-", after)
		r := g.recovered(l, func() engine.Entry { return g.dedup("n.b", id, "x") })
		k := known{r.Offset, g.name("n.b"), id, "x", r.Timestamp}
		if got := g.read(l, engine.ReadRequest{}); done || len(got) == 1 {
			list = []known{k}
			if err := l.Check(engine.Position{Epoch: before.Epoch, Offset: 1}); !isEpochChanged(err, l.State()) {
				g.Errorf("a position from before the deletion: %v", err)
			}
		} else {
			list = append(list, k)
			g.same("not deleted", got, list)
		}
	}
	g.same("after a restart", g.read(g.restart(), engine.ReadRequest{}), list)
}

// deleteOnFullDisk: there it is needed most.
func deleteOnFullDisk(g *rig) {
	l := g.open(engine.Config{})
	g.fill(l, 50, "n.a")
	before := l.State()
	g.storage.Full(true)
	g.eventually("STORAGE_FULL", func() bool { return errors.Is(g.eng.Health(), engine.ErrStorageFull) })
	g.delete(namespace)
	g.storage.Full(false)
	l = g.log(namespace)
	g.empty(l, before)
	g.eventually("recovery", func() bool { return g.eng.Health() == nil })
	if k := g.put(l, "n.a", "x"); k.offset != 1 {
		g.Errorf("offset %d, want 1", k.offset)
	}
}
