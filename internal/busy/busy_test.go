package busy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/topic"
)

var began = time.Unix(1_700_000_000, 0)

// exactly are the decayed sums of one topic, or of all, kept the slow way.
type exactly struct{ events, bytes float64 }

func (e exactly) weight() float64 { return eventWeight*e.events + e.bytes }

// Against exact counts: what is told of a topic is never more than the truth, nor less by more than it says; and the heavy are known.
// Few topics more than there is room for, so that slots change hands all the time, with pauses that reach over eras.
func TestAgainstExactCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(rapid.SampledFrom([]int{1, 64}).Draw(t, "topics"), began)
		topics := rapid.IntRange(1, 40*len(c.sets)).Draw(t, "named")
		truth := map[topic.Name]exactly{}
		now := began
		for range rapid.IntRange(0, 60).Draw(t, "batches") {
			pause := rapid.OneOf(rapid.Int64Range(0, int64(time.Second)), rapid.Int64Range(0, int64(3*era))).Draw(t, "pause")
			if pause < int64(time.Second) || rapid.IntRange(0, 9).Draw(t, "long") == 0 {
				now = now.Add(time.Duration(pause))
				f := math.Exp(-time.Duration(pause).Seconds() / Memory.Seconds())
				for n, e := range truth {
					truth[n] = exactly{e.events * f, e.bytes * f}
				}
			}
			b := c.At(now)
			for range rapid.IntRange(0, 30).Draw(t, "events") {
				// The lower of two: some are named more than others.
				i := min(rapid.IntRange(1, topics).Draw(t, "topic"), rapid.IntRange(1, topics).Draw(t, "or"))
				n, bytes := name(i), rapid.IntRange(0, 1000).Draw(t, "bytes")
				b.Add(n, bytes)
				e := truth[n]
				truth[n] = exactly{e.events + 1, e.bytes + float64(bytes)}
			}
			b.Done()
		}
		list, matched := c.List(now, nil, ByEvents, math.MaxInt)
		if matched != len(list) || matched > len(c.sets)*ways {
			t.Fatalf("%d of %d", len(list), matched)
		}
		all, known := exactly{}, map[topic.Name]bool{}
		for _, e := range truth {
			all = exactly{all.events + e.events, all.bytes + e.bytes}
		}
		last := math.Inf(1)
		for _, o := range list {
			e := truth[o.Name]
			e = exactly{e.events / Memory.Seconds(), e.bytes / Memory.Seconds()}
			if known[o.Name] || o.Events > last {
				t.Fatalf("%v comes twice or late", o)
			}
			known[o.Name], last = true, o.Events
			events, bytes := 1e-9*e.events, 1e-9*e.bytes
			if o.Events > e.events+events || o.Bytes > e.bytes+bytes {
				t.Fatalf("%+v is more than %+v", o, e)
			}
			events, bytes = exact*e.events+events+idle, exact*e.bytes+bytes+idle*eventWeight
			if o.Events+o.MissedEvents < e.events-events || o.Bytes+o.MissedBytes < e.bytes-bytes {
				t.Fatalf("%+v is less than %+v", o, e)
			}
		}
		for n, e := range truth {
			if e.events > 2*idle*Memory.Seconds() && e.weight() > all.weight()/ways+2*idle*eventWeight*Memory.Seconds() && !known[n] {
				t.Fatalf("%v, %+v of %+v, is not known", n, e, all)
			}
		}
	})
}

func name(i int) topic.Name { return topic.Stored(fmt.Sprintf("a.t%d", i)) }

func count(c *Counter, at time.Time, n topic.Name, events, bytes int) {
	b := c.At(at)
	for range events {
		b.Add(n, bytes)
	}
	b.Done()
}

// A constant rate is told as it is; what ends fades, and is not listed for ever.
func TestRates(t *testing.T) {
	c := New(1000, began)
	now := began
	for range 6000 {
		now = now.Add(10 * time.Millisecond)
		count(c, now, name(1), 10, 100)
		count(c, now, name(2), 1, 10_000)
	}
	rates := func(by Order) [2]Topic {
		t.Helper()
		list, matched := c.List(now, nil, by, 10)
		if len(list) != 2 || matched != 2 {
			t.Fatalf("%v of %d", list, matched)
		}
		return [2]Topic(list)
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 0.01*b }
	if l := rates(ByEvents); l[0].Name != name(1) || !near(l[0].Events, 1000) || !near(l[0].Bytes, 100_000) || !near(l[1].Events, 100) || !near(l[1].Bytes, 1e6) || l[0].MissedEvents+l[0].MissedBytes > 0 {
		t.Errorf("%+v", l)
	}
	if l := rates(ByBytes); l[0].Name != name(2) {
		t.Errorf("by bytes %+v", l)
	}
	if l, matched := c.List(now, nil, ByEvents, 1); len(l) != 1 || matched != 2 {
		t.Errorf("%v of %d", l, matched)
	}
	if l, matched := c.List(now, func(n topic.Name) bool { return n == name(2) }, ByEvents, 10); len(l) != 1 || matched != 1 || l[0].Name != name(2) {
		t.Errorf("%v of %d", l, matched)
	}
	now = now.Add(Memory)
	if l := rates(ByEvents); !near(l[0].Events, 1000/math.E) {
		t.Errorf("later %+v", l)
	}
	now = now.Add(20 * Memory)
	if l, matched := c.List(now, nil, ByEvents, 10); len(l) != 0 || matched != 0 {
		t.Errorf("%v is idle", l)
	}
	// Over an era whatever is idle is forgotten, its name too.
	now = now.Add(era)
	c.List(now, nil, ByEvents, 10)
	for i := range c.sets {
		for _, s := range c.sets[i].slots {
			if s != (slot{}) {
				t.Errorf("%+v is still there", s)
			}
		}
	}
}

// Among millions of topics that come once, the busy ones are found, and their figures are right once they have been known for a while.
func TestChurn(t *testing.T) {
	c := New(1024, began)
	now, next := began, 1000
	for range 3000 {
		now = now.Add(10 * time.Millisecond)
		for range 100 {
			count(c, now, name(next), 1, 100)
			next++
		}
		for i := range 10 {
			count(c, now, name(i), i+10, 100)
		}
	}
	list, matched := c.List(now, nil, ByEvents, 10)
	if matched > 1024 || len(list) != 10 {
		t.Fatalf("%d of %d", len(list), matched)
	}
	for i, o := range list {
		want := float64(19-i) * 100
		if o.Name != name(9-i) || math.Abs(o.Events-want) > 0.02*want || o.MissedEvents > 0.1*want {
			t.Errorf("%+v, want %v", o, want)
		}
	}
}

// A publisher whose clock was read before another's, and who counts after it, does no harm, not even over the end of an era.
func TestLateCounts(t *testing.T) {
	c := New(1, began)
	late := began.Add(era - time.Millisecond)
	now := began.Add(era + time.Millisecond)
	count(c, now, name(1), 500, 0)
	count(c, late, name(1), 500, 0)
	list, _ := c.List(now, nil, ByEvents, 1)
	if len(list) != 1 || math.Abs(list[0].Events-200) > 0.1 {
		t.Errorf("%+v", list)
	}
	if list, _ := c.List(late, nil, ByEvents, 1); len(list) != 1 || math.Abs(list[0].Events-200) > 0.1 {
		t.Errorf("%+v, in the past", list)
	}
	count(c, began.Add(-time.Hour), name(1), 1, 0)
}

func TestConcurrentCounts(t *testing.T) {
	c := New(64, began)
	now := began.Add(time.Second)
	var publishers sync.WaitGroup
	for p := range 8 {
		publishers.Go(func() {
			for i := range 1000 {
				count(c, now, name(i%4), 5, 10)
				if i%100 == p {
					c.List(now, nil, ByBytes, 3)
				}
			}
		})
	}
	publishers.Wait()
	list, _ := c.List(now, nil, ByEvents, 10)
	for _, o := range list {
		if want := 8 * 250 * 5 / Memory.Seconds(); math.Abs(o.Events-want) > 1e-6*want {
			t.Errorf("%+v, want %v", o, want)
		}
	}
	if len(list) != 4 {
		t.Errorf("%v", list)
	}
}

// Counting allocates nothing, not even where every event is on a topic of its own.
func TestCountingAllocatesNothing(t *testing.T) {
	c := New(64, began)
	names := make([]topic.Name, 10_000)
	for i := range names {
		names[i] = name(i)
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		b := c.At(began)
		for range 100 {
			b.Add(names[i%len(names)], 100)
			i++
		}
		b.Done()
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCount is what counting costs an event: in batches of one publisher, and alone; on one topic, on so many, and on topics that are
// new each time.
func BenchmarkCount(b *testing.B) {
	for _, batch := range []int{1, 100} {
		for _, topics := range []int{1, 10, 1000, 100_000} {
			b.Run(fmt.Sprintf("batch=%d/topics=%d", batch, topics), func(b *testing.B) {
				c := New(8192, began)
				names := make([]topic.Name, topics)
				for i := range names {
					names[i] = topic.Stored(fmt.Sprintf("orders.eu.customer-%06d", i))
				}
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					now := began
					for i := rand.IntN(topics); ; {
						now = now.Add(time.Millisecond)
						batched := c.At(now)
						for range batch {
							if !pb.Next() {
								batched.Done()
								return
							}
							batched.Add(names[i%topics], 136)
							i++
						}
						batched.Done()
					}
				})
			})
		}
	}
}
