package natsengine

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// reads is how many messages an engine has sent to read what is stored.
func reads(e *Engine) (n uint64) {
	for _, one := range e.reads {
		n += one.nc.Stats().OutMsgs
	}
	return n
}

// What a publisher sends again after a break costs no more than what of it is new, at any node.
func TestSentAgain(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	first, second := open(t, Options{URLs: c.URLs(), Replicas: 1}), open(t, Options{URLs: c.URLs(), Replicas: 1})
	var all []engine.Entry
	for i := range 1500 {
		all = append(all, entry(fmt.Sprintf("n.%d", i%7), fmt.Sprint(i)))
	}
	other := logOf(t, second, "n")
	l := logOf(t, first, "n")
	stored := put(t, l, all[:1000]...)
	for i, one := range []*log{l, other} {
		if err := one.await(t.Context(), 1000); err != nil {
			t.Fatal(err)
		}
		before, read := one.e.write.nc.Stats().OutMsgs, reads(one.e)
		fresh := 1000 + 100*i // each sends 100 that are new
		got := put(t, one, all[:fresh+100]...)
		for j, r := range got {
			switch {
			case r.Duplicate != (j < fresh):
				t.Fatalf("event %d is a duplicate: %v", j, r.Duplicate)
			case j < 1000 && (r.Offset != stored[j].Offset || r.Timestamp != stored[j].Timestamp):
				t.Fatalf("event %d: %+v, want %+v", j, r, stored[j])
			}
		}
		if sent := one.e.write.nc.Stats().OutMsgs - before; sent > 110 {
			t.Errorf("%d messages for 100 events", sent)
		}
		if n := reads(one.e) - read; n > 50 { // the stream is looked at now and then
			t.Errorf("%d reads", n)
		}
		if err := other.await(t.Context(), one.State().Head); err != nil {
			t.Fatal(err)
		}
	}
	// A node that begins only now knows nothing of it, and finds it together all the same.
	third := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	before, read := third.e.write.nc.Stats().OutMsgs, reads(third.e)
	for j, r := range put(t, third, all[900:1300]...) {
		if r.Duplicate != (j < 300) || r.Duplicate && j < 100 && (r.Offset != stored[900+j].Offset || r.Timestamp != stored[900+j].Timestamp) {
			t.Fatalf("event %d: %+v", j, r)
		}
	}
	// A batch that is refused, one by itself that tells where, and what is new.
	if sent := third.e.write.nc.Stats().OutMsgs - before; sent > 400+1+100+10 {
		t.Errorf("%d messages", sent)
	}
	if n := reads(third.e) - read; n > 20 {
		t.Errorf("%d reads", n)
	}
	for j, r := range put(t, third, all[1290:1500]...) {
		if r.Duplicate != (j < 10) {
			t.Fatalf("event %d is a duplicate: %v", j, r.Duplicate)
		}
	}
	if got := everything(t, third); len(got) != 1500 {
		t.Errorf("%d events", len(got))
	}
}

// A publisher may come to another node sooner than what it sends again.
func TestSentAgainAtOnce(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	r := newRelay(t, c)
	late := r.open(1)
	first := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	var refused atomic.Bool
	r.set(nil, func(m *packet) bool {
		if bytes.Contains(m.data, []byte(`"err_code":10201`)) {
			refused.Store(true)
		}
		return refused.Load() || !strings.HasPrefix(m.reply, "$JS.ACK.") // what a consumer brings; what is missing is brought again
	})
	var all []engine.Entry
	for i := range 400 {
		all = append(all, entry(fmt.Sprintf("n.%d", i%7), fmt.Sprint(i)))
	}
	stored := put(t, first, all[:300]...)
	before := late.e.write.nc.Stats().OutMsgs
	for j, r := range put(t, late, all...) {
		if r.Duplicate != (j < 300) || j < 300 && (r.Offset != stored[j].Offset || r.Timestamp != stored[j].Timestamp) {
			t.Fatalf("event %d: %+v", j, r)
		}
	}
	// A batch that is refused, and what is new.
	if sent := late.e.write.nc.Stats().OutMsgs - before; sent > 400+100+10 {
		t.Errorf("%d messages", sent)
	}
	if err := first.await(t.Context(), 400); err != nil {
		t.Fatal(err)
	}
	if got := everything(t, first); len(got) != 400 {
		t.Errorf("%d events", len(got))
	}
}

// What was sent far apart is not looked for around each of them.
func TestSentAgainFarApart(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	l := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	var own []engine.Entry
	for i := range 10 {
		own = append(own, entry("n.own", fmt.Sprint(i)))
		put(t, l, own[i])
		var others []engine.Entry
		for k := range getEvents + 10 {
			others = append(others, entry("n.other", fmt.Sprint(i, k)))
		}
		put(t, l, others...)
	}
	other := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	before := reads(other.e)
	for j, r := range put(t, other, own...) {
		if !r.Duplicate {
			t.Errorf("event %d: %+v", j, r)
		}
	}
	// One each for the time of an event, and the node itself may look at something.
	if n := reads(other.e) - before; n > uint64(len(own))+6 {
		t.Errorf("%d reads", n)
	}
}

// An event that comes while it is looked for is what was sent, and no duplicate.
func TestComesMeanwhile(t *testing.T) {
	t.Parallel()
	l := logOf(t, open(t, Options{URLs: natstest.New(t, 1).URLs(), Replicas: 1}), "n")
	a := &appending{l: l, entries: []engine.Entry{entry("n.a", "1")}, results: make([]engine.Result, 1)}
	s := l.send()
	at, _ := a.known([]int{0}, []*sending{s}, func(idKey) (place, bool) {
		s.seen(7, time.Now().UnixMilli())
		return place{7, time.Now().UnixMilli()}, true
	})
	if r := a.results[0]; len(at) > 0 || r.Duplicate || r.Offset != 7 || !a.stored {
		t.Errorf("%v, %+v, stored: %v", at, r, a.stored)
	}
}

// Ids are forgotten with their events, also where each is larger than what may be kept.
func TestRecallOfLargeEvents(t *testing.T) {
	t.Parallel()
	e := open(t, Options{URLs: natstest.New(t, 1).URLs(), Replicas: 1})
	l := logOf(t, e, "n")
	e.logs.Add(1 << 20) // as if there were so many
	defer e.logs.Add(-1 << 20)
	for i := range 5 {
		en := entry("n.a", fmt.Sprint(i))
		en.Body = append(en.Body, make([]byte, 2*leastRing)...)
		if _, err := l.Append(t.Context(), []engine.Entry{en}, engine.AppendEach); err != nil {
			t.Fatal(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.recall.queue); n > 0 || len(l.recall.at) > 0 {
		t.Errorf("%d ids are kept", n)
	}
}

// Behind an event that fails nothing is told to be there, though it is.
func TestSentAgainBehindAFailure(t *testing.T) {
	t.Parallel()
	l := logOf(t, open(t, Options{URLs: natstest.New(t, 1).URLs(), Replicas: 1}), "n")
	put(t, l, entry("n.a", "1"), entry("n.a", "2"))
	wrong := entry("n.a", "3")
	wrong.Conditional, wrong.Expected = true, 77
	got, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "1"), wrong, entry("n.a", "2"), entry("n.a", "4")}, engine.AppendOrdered)
	if err != nil {
		t.Fatal(err)
	}
	if !got[0].Duplicate || got[0].Err != nil || got[1].Err == nil || got[2].Err != engine.ErrSkipped || got[2].Duplicate || got[3].Err != engine.ErrSkipped {
		t.Errorf("%+v", got)
	}
}

// Ids are forgotten with their events, also one that comes again and again.
func TestRecall(t *testing.T) {
	var r recall
	for offset := uint64(1); offset <= 10_000; offset++ {
		id := offset
		if offset%2 == 0 {
			id = 0
		}
		r.note(hashID(entry("n.a", "").Topic, fmt.Sprint(id)), offset, 1)
		r.forget(max(offset, 100) - 100 + 1)
		if len(r.at) > 100 || len(r.queue) > 100 {
			t.Fatalf("%d ids in %d places at %d", len(r.at), len(r.queue), offset)
		}
	}
	if _, ok := r.at[idKey{}]; ok {
		t.Error("nothing is known")
	}
	r.note("garbage", 10_001, 1)
	if len(r.queue) != 100 {
		t.Error("garbage was noted")
	}
}
