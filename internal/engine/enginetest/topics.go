package enginetest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

var topicCases = []testCase{
	{"Topic", kept, 0, oneTopic},
	{"Topics", kept, 0, topicsPaged},
	{"trimmed topics vanish", kept, 0, trimmedTopics},
	{"topics outlive a restart", durable, 0, topicsAfterRestart},
}

// states are the topics of known events, in byte order.
func states(list []known) []known {
	newest := map[topic.Name]known{}
	for _, k := range list {
		newest[k.name] = k
	}
	var names []known
	for _, k := range newest {
		names = append(names, k)
	}
	slices.SortFunc(names, func(a, b known) int { return strings.Compare(a.name.String(), b.name.String()) })
	return names
}

// checkTopic compares a TopicState with the known events that are retained.
func (g *rig) checkTopic(s engine.TopicState, list []known) {
	g.Helper()
	of := matching(list, s.Topic.Pattern(), 0, 1<<62)
	if len(of) == 0 {
		g.Errorf("topic %s has no events", s.Topic)
		return
	}
	first, last := of[0], of[len(of)-1]
	if s.Oldest != first.offset || s.Newest != last.offset {
		g.Errorf("topic %s: %d to %d, want %d to %d", s.Topic, s.Oldest, s.Newest, first.offset, last.offset)
	}
	g.check(s.Last, last)
}

func oneTopic(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 200, someTopics...)
	for _, k := range states(list) {
		s, ok, err := l.Topic(g.ctx, k.name)
		if !ok || err != nil || s.Topic != k.name {
			g.Fatalf("%s: %+v, %v, %v", k.name, s, ok, err)
		}
		g.checkTopic(s, list)
	}
	for _, name := range []string{"n.none", "n.a.x.y", "n.aa", "n.A"} {
		if s, ok, err := l.Topic(g.ctx, g.name(name)); ok || err != nil {
			g.Errorf("%s: %+v, %v, %v", name, s, ok, err)
		}
	}
}

func topicsPaged(g *rig) {
	l := g.open(engine.Config{})
	topics := slices.Clone(someTopics)
	for i := range 30 {
		topics = append(topics, fmt.Sprintf("n.many.%02d", i))
	}
	list := g.fill(l, 400, topics...)
	for _, pattern := range append(slices.Clone(somePatterns), "n.many.*") {
		p := g.pattern(pattern)
		want := states(matching(list, p, 0, 1<<62))
		for _, limit := range []int{1, 2, 7, len(want), 1000} {
			g.pageTopics(l, p, limit, want, list)
		}
	}
	// after need not be a topic that exists.
	got, _, err := l.Topics(g.ctx, g.pattern("n.>"), "n.many.1", 1)
	if err != nil || len(got) != 1 || got[0].Topic.String() != "n.many.10" {
		g.Errorf("behind a name that does not exist: %v, %v", got, err)
	}
}

func (g *rig) pageTopics(l engine.Log, p topic.Pattern, limit int, want, list []known) {
	g.Helper()
	if limit == 0 {
		return
	}
	var got []engine.TopicState
	for after, more := "", true; more; {
		var page []engine.TopicState
		var err error
		page, more, err = l.Topics(g.ctx, p, after, limit)
		if err != nil || len(page) > limit || more && len(page) == 0 {
			g.Fatalf("%s after %q, at most %d: %d topics, more %v, %v", p, after, limit, len(page), more, err)
		}
		got = append(got, page...)
		if len(page) > 0 {
			after = page[len(page)-1].Topic.String()
		}
		if more != (len(got) < len(want)) {
			g.Errorf("%s, at most %d: more is %v after %d of %d", p, limit, more, len(got), len(want))
			return
		}
	}
	if len(got) != len(want) {
		g.Errorf("%s, at most %d: %d topics, want %d", p, limit, len(got), len(want))
		return
	}
	for i, s := range got {
		if s.Topic != want[i].name {
			g.Errorf("%s, at most %d: topic %d is %s, want %s", p, limit, i, s.Topic, want[i].name)
		}
		g.checkTopic(s, list)
	}
}

func trimmedTopics(g *rig) {
	l := g.open(engine.Config{MaxEvents: 20})
	g.fill(l, 50, "n.old", "n.older")
	list := g.fill(l, 15, "n.a", "n.b")
	list = append(list, g.fill(l, 20, "n.b", "n.c")...)
	check := func(l engine.Log) {
		g.Helper()
		g.eventually("trimming", func() bool { s := l.State(); return s.Head+1-s.Oldest <= 20 })
		s := l.State()
		left := matching(list, topic.Pattern{}, s.Oldest-1, s.Head)
		g.pageTopics(l, g.pattern("n.>"), 10, states(left), left)
		if s, ok, err := l.Topic(g.ctx, g.name("n.old")); ok || err != nil {
			g.Errorf("a trimmed topic: %+v, %v, %v", s, ok, err)
		}
		offsets, err := l.LastOffsets(g.ctx, g.pattern("n.>"), s.Head, 100)
		if err != nil || len(offsets) != len(states(left)) {
			g.Errorf("LastOffsets: %v, %v, want %d", offsets, err, len(states(left)))
		}
		if after, err := l.AfterLast(g.ctx, g.pattern("n.>"), 1000, s.Head); err != nil || after != s.Oldest-1 {
			g.Errorf("AfterLast: %d, %v, want %d", after, err, s.Oldest-1)
		}
		if after, err := l.BeforeTime(g.ctx, 0); err != nil || after != s.Oldest-1 {
			g.Errorf("BeforeTime: %d, %v, want %d", after, err, s.Oldest-1)
		}
	}
	check(l)
	if g.history != engine.HistoryMemory {
		check(g.restart())
	}
}

func topicsAfterRestart(g *rig) {
	l := g.open(engine.Config{})
	list := g.fill(l, 100, someTopics...)
	l = g.restart()
	list = append(list, g.fill(l, 20, "n.a", "n.new")...)
	g.pageTopics(l, g.pattern("n.>"), 3, states(matching(list, g.pattern("n.>"), 0, 1<<62)), list)
}
