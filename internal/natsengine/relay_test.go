package natsengine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/topic"
)

// replica changes the answers to direct gets to those of a replica that has the events from least to most alone.
func replica(least, most uint64) func(m *packet) bool {
	return func(m *packet) bool {
		switch n := m.number("Nats-Sequence"); {
		case n > 0 && m.reply == "" && bytes.Contains(m.header, []byte("Nats-Subject: ")):
			return n >= least && n <= most
		case bytes.HasPrefix(m.header, []byte("NATS/1.0 204")):
			m.header = fmt.Appendf(nil, "NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-UpTo-Sequence: %d\r\n\r\n", most)
		}
		return true
	}
}

// The replica that answers lacks the newest events, or the oldest. Whatever is read then is right, or is not read.
func TestStaleReplica(t *testing.T) {
	t.Parallel()
	r := newRelay(t, natstest.New(t, 1))
	// With retention, which each replica does for itself.
	l := logOf(t, open(t, Options{URLs: []string{r.url()}, Replicas: 1, Namespace: func(string) (engine.Config, bool) {
		return engine.Config{History: engine.HistoryDisk, MaxEvents: 1 << 20}, true
	}}), "n")
	const events = 600
	var want []engine.Event
	for i := 0; i < events; i += 100 {
		var list []engine.Entry
		for k := i; k < i+100; k++ {
			list = append(list, entry(fmt.Sprintf("n.%d", k%3), fmt.Sprint(k)))
		}
		put(t, l, list...)
	}
	want = everything(t, l)
	for name, answers := range map[string]func(*packet) bool{
		"lacks the newest": replica(1, 200), "lacks the oldest": replica(300, events), "has nothing": replica(1, 0), "is up to date": replica(1, events),
	} {
		t.Run(name, func(t *testing.T) {
			r.set(nil, answers)
			for _, pattern := range []string{"", "n.1", "n.*"} {
				staleReads(t, l, pattern, want)
			}
			staleLookups(t, l, want)
		})
	}
	r.set(nil, nil)
	l.forget()
	same(t, want, everything(t, l))
}

// staleReads checks that every page has what there is in its range.
func staleReads(t *testing.T, l *log, pattern string, want []engine.Event) {
	t.Helper()
	var p topic.Pattern
	if pattern != "" {
		var err error
		if p, err = topic.ParsePattern(pattern); err != nil {
			t.Fatal(err)
		}
	}
	for _, after := range []uint64{0, 150, 199, 200, 250, 598} {
		l.forget()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		page, err := l.Read(ctx, engine.ReadRequest{Pattern: p, After: after})
		cancel()
		if errors.Is(err, engine.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil || len(page.Damaged) > 0 || page.Scanned <= after {
			t.Fatalf("%q behind %d: %+v, %v", pattern, after, page, err)
		}
		for _, ev := range want[after:page.Scanned] {
			if p != (topic.Pattern{}) && !p.Match(ev.Topic) {
				continue
			}
			if len(page.Events) == 0 || page.Events[0].Offset != ev.Offset || !bytes.Equal(page.Events[0].Wire, ev.Wire) {
				t.Fatalf("%q behind %d: scanned up to %d, and offset %d is not there", pattern, after, page.Scanned, ev.Offset)
			}
			page.Events = page.Events[1:]
		}
		if len(page.Events) > 0 {
			t.Fatalf("%q behind %d: too much: %+v", pattern, after, page.Events)
		}
	}
}

// staleLookups checks what is looked up by other means.
func staleLookups(t *testing.T, l *log, want []engine.Event) {
	t.Helper()
	all, err := topic.ParsePattern("n.>")
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func(ctx context.Context) (got, want any, err error){
		"ReadAt": func(ctx context.Context) (any, any, error) {
			p, err := l.ReadAt(ctx, []uint64{1, 250, 600}, 1<<20)
			return len(p.Events)*10 + len(p.Damaged), 30, err
		},
		"LastOffsets": func(ctx context.Context) (any, any, error) {
			list, err := l.LastOffsets(ctx, all, 600, 10)
			return slices.Equal(list, []uint64{598, 599, 600}), true, err
		},
		"LastOffsets below": func(ctx context.Context) (any, any, error) {
			list, err := l.LastOffsets(ctx, all, 400, 10)
			return slices.Equal(list, []uint64{398, 399, 400}), true, err
		},
		"AfterLast": func(ctx context.Context) (any, any, error) {
			n, err := l.AfterLast(ctx, all, 450, 600)
			return n, uint64(150), err
		},
		"BeforeTime": func(ctx context.Context) (any, any, error) {
			n, err := l.BeforeTime(ctx, want[599].Timestamp)
			i := slices.IndexFunc(want, func(ev engine.Event) bool { return ev.Timestamp >= want[599].Timestamp })
			return n, want[i].Offset - 1, err
		},
		"Topics": func(ctx context.Context) (any, any, error) {
			list, _, err := l.Topics(ctx, all, "", 10)
			return err == nil && len(list) == 3 && list[0].Oldest == 1 && list[0].Newest == 598, err == nil, err
		},
	} {
		l.forget()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		got, want, err := f(ctx)
		cancel()
		switch {
		case errors.Is(err, engine.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		case err != nil || got != want:
			t.Errorf("%s: %v, want %v: %v", what, got, want, err)
		}
	}
}

// An append whose outcome is not known is sent again under the same id, and nobody is told anything before it is known.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRelay(t, natstest.New(t, 1))
	l := r.open(1)
	isPublish := func(m *packet) bool { return strings.HasPrefix(m.subject, "runnel.n.") }
	isAck := func(m *packet) bool { return bytes.HasPrefix(m.data, []byte(`{"stream":`)) }
	isEvent := func(m *packet) bool { return strings.HasPrefix(m.reply, "$JS.ACK.") }
	var sent atomic.Int64
	for name, hooks := range map[string][2]func(*packet) bool{
		"a publish is lost":                {func(m *packet) bool { return !isPublish(m) || sent.Add(1) > 1 }, nil},
		"answers are lost":                 {nil, func(m *packet) bool { return !isAck(m) }},
		"an answer and the event are lost": {func(m *packet) bool { return !isPublish(m) || sent.Add(1) > 0 }, func(m *packet) bool { return !isAck(m) && !isEvent(m) || sent.Load() > 1 }},
	} {
		sent.Store(0)
		before := l.State().Head
		r.set(hooks[0], hooks[1])
		if got := put(t, l, entry("n.a", name))[0]; got.Offset != before+1 || got.Duplicate {
			t.Errorf("%s: %+v", name, got)
		}
		r.set(nil, nil)
		if got := put(t, l, entry("n.a", name))[0]; got.Offset != before+1 || !got.Duplicate {
			t.Errorf("%s, and again: %+v", name, got)
		}
		if events := everything(t, l); uint64(len(events)) != before+1 {
			t.Errorf("%s: %d events", name, len(events))
		}
	}
}

// A server that has just removed its last stream cannot make another for a moment.
func TestStreamNotCreated(t *testing.T) {
	t.Parallel()
	r := newRelay(t, natstest.New(t, 1))
	var failed atomic.Int64
	r.set(nil, func(m *packet) bool {
		if bytes.Contains(m.data, []byte("stream_create_response")) && failed.Add(1) == 1 {
			m.data = []byte(`{"error":{"code":500,"err_code":10049,"description":"error creating store for stream"}}`)
		}
		return true
	})
	put(t, r.open(1), entry("n.a", "1"))
	if failed.Load() == 0 {
		t.Error("nothing failed")
	}
}

// A position that another node was given is good here, also while the leader has not stored the event and a follower has; and as long as
// nobody can tell it is not bad.
func TestLeaderLags(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 3)
	r := newRelay(t, c)
	l := r.open(3)
	deaf := func(m *packet) bool { return !strings.HasPrefix(m.reply, "$JS.ACK.") } // it does not hear of events
	r.set(nil, deaf)
	other := logOf(t, open(t, Options{URLs: c.URLs()}), "n")
	offset := put(t, other, entry("n.a", "1"))[0].Offset
	var looks atomic.Int64
	began := time.Now()
	r.set(nil, func(m *packet) bool {
		if last := []byte(`"last_seq":1,`); bytes.Contains(m.data, last) {
			looks.Add(1)
			m.data = bytes.ReplaceAll(m.data, last, []byte(`"last_seq":0,`))
		}
		return deaf(m) || time.Since(began) > 2*time.Second
	})
	position := engine.Position{Epoch: l.State().Epoch, Offset: offset}
	if err := l.Check(position); err != nil {
		t.Errorf("%v, after %d answers", err, looks.Load())
	}
	r.set(nil, func(m *packet) bool { return deaf(m) && !bytes.Contains(m.data, []byte("stream_info_response")) })
	position.Offset = put(t, other, entry("n.a", "2"))[0].Offset
	if err := l.Check(position); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a leader that does not answer: %v", err)
	}
	r.set(nil, nil)
	if err := l.Check(position); err != nil {
		t.Error(err)
	}
	position.Offset++
	if changed := (*engine.EpochChangedError)(nil); !errors.As(l.Check(position), &changed) {
		t.Errorf("a position from the future: %v", l.Check(position))
	}
}

// A leader that is new, or slow, may not know its stream for a moment. That ends no log, and a deletion is not done by it.
func TestNotFoundForAMoment(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	r := newRelay(t, c)
	l := r.open(1)
	put(t, l, entry("n.a", "1"))
	var denied atomic.Int64
	deny := func() {
		denied.Store(0)
		r.set(nil, func(m *packet) bool {
			if bytes.Contains(m.data, []byte("stream_info_response")) && denied.Add(1) == 1 {
				m.data = []byte(`{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`)
			}
			return true
		})
	}
	deny()
	if err := l.e.feed.nc.ForceReconnect(); err != nil { // it is looked for
		t.Fatal(err)
	}
	until(t, "a look", func() bool { return denied.Load() > 1 })
	deny()
	if _, err := l.Trim(t.Context(), 0); err != nil && !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a read: %v", err)
	}
	if r := put(t, l, entry("n.a", "2"))[0]; r.Offset != 2 {
		t.Errorf("%+v", r)
	}
	deny()
	if own := logOf(t, open(t, Options{URLs: []string{r.url()}, Replicas: 1}), "n"); own.stream != l.stream {
		t.Errorf("another stream: %s", own.stream)
	}
	deny()
	if err := l.e.Delete(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if name, err := l.e.find(t.Context(), "n"); err != nil || name == l.stream {
		t.Errorf("%q is there after its deletion: %v", name, err)
	}
}

// A condition cannot be judged while another append to the topic is on its way: NATS says so with a code of its own, which is no conflict.
func TestConflictInFlight(t *testing.T) {
	t.Parallel()
	r := newRelay(t, natstest.New(t, 1))
	l := r.open(1)
	var sent, refused atomic.Int64
	r.set(func(m *packet) bool {
		if m.is(headerExpected, "0") && sent.Add(1) == 1 { // so that the server refuses it
			m.header = bytes.Replace(m.header, []byte(headerExpected+": 0"), []byte(headerExpected+": 7"), 1)
		}
		return true
	}, func(m *packet) bool {
		if bytes.Contains(m.data, []byte(`"err_code":10071`)) && refused.Add(1) == 1 {
			m.data = []byte(`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"},"stream":"x","seq":0}`)
		}
		return true
	})
	en := entry("n.a", "1")
	en.Conditional = true
	if got := put(t, l, en)[0]; got.Offset != 1 || got.Duplicate || refused.Load() != 1 {
		t.Errorf("%+v, refused %d times", got, refused.Load())
	}
}
