package enginetest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

var retentionCases = []testCase{
	{"retention by events", kept, 0, byEvents},
	{"retention by bytes", kept, 0, byBytes},
	{"retention by age", kept, needClock, byAge},
	{"retention by age without appends", kept, needClock, byAgeAlone},
	{"everything is trimmed", kept, needClock, everythingTrimmed},
	{"retention is for each namespace", kept, 0, retentionApart},
	{"retention holds across a restart", durable, 0, retentionRestart},
	{"trimming by hand", kept, 0, byHand},
	{"trimming by hand holds across a restart", durable, 0, byHandRestart},
	{"trimming where nothing is kept", none, 0, byHandNone},
}

// retained checks that exactly the events from the oldest on can be read, and returns their number.
func (g *rig) retained(l engine.Log, list []known) int {
	g.Helper()
	s := l.State()
	left := matching(list, topic.Pattern{}, s.Oldest-1, s.Head)
	g.same("what is retained", g.read(l, engine.ReadRequest{After: s.Oldest - 1}), left)
	if err := l.Check(engine.Position{Epoch: s.Epoch, Offset: s.Oldest - 1}); err != nil {
		g.Errorf("the position before the oldest, %d: %v", s.Oldest, err)
	}
	if s.Oldest > 1 {
		if err := l.Check(engine.Position{Epoch: s.Epoch, Offset: s.Oldest - 2}); !isGone(err, s) {
			g.Errorf("a position that lost an event, oldest %d: %v", s.Oldest, err)
		}
	}
	return len(left)
}

func byEvents(g *rig) {
	const keep = 100
	l := g.open(engine.Config{MaxEvents: keep})
	list := g.fill(l, keep, "n.a", "n.b")
	if n := g.retained(l, list); n != keep {
		g.Errorf("%d events, and %d are allowed: want all", n, keep)
	}
	list = append(list, g.fill(l, 777, "n.a", "n.b")...)
	g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= keep })
	if n := g.retained(l, list); n != keep {
		g.Errorf("%d events, want %d", n, keep)
	}
}

func byBytes(g *rig) {
	const size, limit = 1000, 50_000
	l := g.open(engine.Config{MaxBytes: limit})
	var list []known
	for i := range 200 {
		list = append(list, g.put(l, "n.a", fmt.Sprint(i)+strings.Repeat("x", size)))
	}
	// How many bytes an event takes up is the engine's affair, within reason.
	g.eventually("trimming", func() bool { s := l.State(); return (s.Head-s.Oldest+1)*size <= limit })
	if n := g.retained(l, list); n < limit/size*3/4 {
		g.Errorf("%d events of %d bytes are left, and %d bytes are allowed", n, size, limit)
	}
}

func byAge(g *rig) {
	l := g.open(engine.Config{MaxAge: 10 * time.Second})
	var list []known
	for i := range 30 {
		g.clock.move(time.Second)
		list = append(list, g.put(l, "n.a", fmt.Sprint(i)))
	}
	g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= 11 })
	if n := g.retained(l, list); n < 10 {
		g.Errorf("%d events are left, want the newest 10 or 11", n)
	}
}

func byAgeAlone(g *rig) {
	l := g.open(engine.Config{MaxAge: time.Second})
	list := g.fill(l, 20, "n.a")
	g.clock.move(time.Minute)
	g.eventually("trimming", func() bool { s := l.State(); return s.Oldest == s.Head+1 })
	g.retained(l, list)
}

// everythingTrimmed: offsets and timestamps go on from what is gone.
func everythingTrimmed(g *rig) {
	l := g.open(engine.Config{MaxAge: time.Second})
	list := g.fill(l, 20, "n.a", "n.b")
	head := l.State().Head
	trimmed := func() {
		g.Helper()
		g.clock.move(time.Minute)
		g.eventually("trimming", func() bool { s := l.State(); return s.Oldest == s.Head+1 })
		g.retained(l, list)
		if topics, more, err := l.Topics(g.ctx, g.pattern("n.>"), "", 10); len(topics) > 0 || more || err != nil {
			g.Errorf("topics: %v, %v, %v", topics, more, err)
		}
		if r := g.append(l, g.conditional("n.a", "1", head))[0]; !isConflict(r.Err, 0) {
			g.Errorf("expected a trimmed event: %+v", r)
		}
	}
	trimmed()
	if s := l.State(); s.Head != head {
		g.Errorf("head %d, want %d", s.Head, head)
	}
	next := g.put(l, "n.a", "next")
	if next.offset <= head {
		g.Errorf("offset %d behind %d", next.offset, head)
	}
	list = append(list, next)
	if g.history == engine.HistoryMemory {
		return
	}
	trimmed()
	l = g.restart()
	if s := l.State(); s.Head != next.offset || s.Oldest != next.offset+1 {
		g.Errorf("after a restart: %+v, want head %d and nothing retained", s, next.offset)
	}
	if k := g.put(l, "n.a", "after"); k.offset <= next.offset || k.time < next.time {
		g.Errorf("after a restart: %+v behind %+v", k, next)
	}
}

func retentionApart(g *rig) {
	l := g.open(engine.Config{MaxEvents: 10})
	other := g.log("other")
	var list []known
	for i := range 10 {
		list = append(list, g.put(other, "other.a", fmt.Sprint(i)))
	}
	g.fill(l, 100, "n.a")
	g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= 10 })
	if n := g.retained(other, list); n != 10 {
		g.Errorf("%d events of the other namespace, want 10", n)
	}
}

func retentionRestart(g *rig) {
	const keep = 10
	l := g.open(engine.Config{MaxEvents: keep})
	var list []known
	for range 4 {
		list = append(list, g.fill(l, 35, "n.a", "n.b")...)
		g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= keep })
		l = g.restart()
		if n := g.retained(l, list); n != keep {
			g.Errorf("%d events, want %d", n, keep)
		}
	}
	// A stricter limit holds from the opening on, or soon after.
	g.close()
	l = g.open(engine.Config{MaxEvents: 3})
	g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= 3 })
	if n := g.retained(l, list); n != 3 {
		g.Errorf("%d events, want 3", n)
	}
}

// trimTo trims, and checks the answer.
func (g *rig) trimTo(l engine.Log, upTo, want uint64) {
	g.Helper()
	oldest, err := l.Trim(g.Context(), upTo)
	if s := l.State(); err != nil || oldest != want || s.Oldest != want {
		g.Errorf("trimmed to %d: oldest %d, %v; the log says %d, want %d", upTo, oldest, err, s.Oldest, want)
	}
}

func byHand(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 100, "n.a", "n.b")
	g.trimTo(l, 0, 1)
	g.trimTo(l, 40, 41)
	if n := g.retained(l, list); n != 60 {
		g.Errorf("%d events, want 60", n)
	}
	g.trimTo(l, 10, 41) // what is gone stays gone, and nothing more goes
	g.trimTo(l, 1<<40, 101)
	if n := g.retained(l, list); n != 0 {
		g.Errorf("%d events, want none", n)
	}
	more := g.fill(l, 5, "n.a")
	if more[0].offset != 101 {
		g.Errorf("offset %d behind 100", more[0].offset)
	}
	if n := g.retained(l, append(list, more...)); n != 5 {
		g.Errorf("%d events, want 5", n)
	}
}

func byHandRestart(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 50, "n.a", "n.b")
	for _, upTo := range []uint64{20, 45, 50} {
		g.trimTo(l, upTo, upTo+1)
		l = g.restart()
		if n := g.retained(l, list); n != 50-int(upTo) {
			g.Errorf("after a restart: %d events, want %d", n, 50-upTo)
		}
	}
}

func byHandNone(g *rig) {
	l := g.open(engine.Config{})
	if _, err := l.Trim(g.Context(), 1); !errors.Is(err, engine.ErrNoHistory) {
		g.Errorf("%v, want ErrNoHistory", err)
	}
}
