package natsengine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// A NATS server is cut off from the others, with a node that knows no other server. What that node reads then is right or not there,
// never with a hole and never short of what it said there is; its appends fail or wait. Afterwards it has everything. Once the
// server follows, once it leads.
func TestIsolation(t *testing.T) {
	t.Parallel()
	c := natstest.NewIsolable(t, 3)
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leads=%v", leads), func(t *testing.T) {
			c.WaitReady()
			c.WaitHealthy()
			prefix := fmt.Sprint("leads-", leads)
			first := logOf(t, open(t, Options{URLs: c.URLs(), Prefix: prefix}), "n")
			for i := range 300 {
				put(t, first, entry(fmt.Sprintf("n.%d", i%3), fmt.Sprint(i)))
			}
			alone := c.Leader(first.stream)
			if !leads {
				alone = (alone + 1) % 3
			}
			l := logOf(t, open(t, Options{URLs: slices.Delete(c.URLs(), alone, alone+1), Prefix: prefix}), "n")
			there := logOf(t, open(t, Options{URLs: []string{c.URL(alone)}, Prefix: prefix}), "n")
			if err := there.await(t.Context(), 300); err != nil {
				t.Fatal(err)
			}
			tail, err := there.Tail(0)
			if err != nil {
				t.Fatal(err)
			}
			defer tail.Close()
			c.Isolate(alone)
			defer c.Heal()
			late := make(chan error, 1)
			var group sync.WaitGroup
			defer group.Wait()
			group.Go(func() {
				for n := 0; ; n++ {
					_, err := there.Append(t.Context(), []engine.Entry{entry("n.0", "from there")}, engine.AppendEach)
					if err == nil || pause(t.Context(), n) != nil {
						late <- err
						return
					}
				}
			})
			until(t, "appends of the majority", func() bool {
				_, err := l.Append(t.Context(), []engine.Entry{entry("n.0", "first")}, engine.AppendEach)
				return err == nil
			})
			for i := 300; i < 400; i++ {
				put(t, l, entry(fmt.Sprintf("n.%d", i%3), fmt.Sprint(i)))
			}
			if head := there.State().Head; head != 300 {
				t.Errorf("a node that is cut off is at %d", head)
			}
			there.forget()
			readsRight(t, there)
			c.Heal()
			// While the server catches up, all that the node says there is can be read.
			until(t, "the node that was alone", func() bool {
				there.forget()
				readsRight(t, there)
				return there.State().Head >= l.State().Head
			})
			if err := <-late; err != nil {
				t.Errorf("an append that began there: %v", err)
			}
			if err := there.await(t.Context(), 402); err != nil {
				t.Fatal(err)
			}
			if err := l.await(t.Context(), 402); err != nil {
				t.Fatal(err)
			}
			same(t, everything(t, l), everything(t, there))
			var tailed []engine.Event
			for len(tailed) < 402 {
				page, err := tail.Next(t.Context())
				if err != nil || len(page.Damaged) > 0 {
					t.Fatalf("the tail: %+v, %v", page.Damaged, err)
				}
				tailed = append(tailed, page.Events...)
			}
			same(t, everything(t, l), tailed)
		})
	}
}

// A node whose server is cut off goes to another, if it knows one.
func TestMovesAway(t *testing.T) {
	t.Parallel()
	c := natstest.NewIsolable(t, 3)
	e := open(t, Options{URLs: c.URLs()})
	l := logOf(t, e, "n")
	put(t, l, entry("n.a", "1"))
	tail, err := l.Tail(1)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	name := e.write.nc.ConnectedServerName()
	alone := int(name[len(name)-1] - '0')
	c.Isolate(alone)
	defer c.Heal()
	began := time.Now()
	for n := 0; ; n++ {
		_, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "2")}, engine.AppendEach)
		if err == nil {
			break
		}
		t.Logf("after %v: %v", time.Since(began), err)
		if time.Since(began) > time.Minute || pause(t.Context(), n) != nil {
			t.Fatalf("append: %v", err)
		}
	}
	if page, err := tail.Next(t.Context()); err != nil || page.Events[0].Offset != 2 {
		t.Errorf("%+v, %v", page, err)
	}
}

// readsRight reads a log to its head, as far as it can be read: what comes has no hole.
func readsRight(t *testing.T, l *log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	for after, head := uint64(0), l.State().Head; after < head; {
		p, err := l.Read(ctx, engine.ReadRequest{After: after})
		if errors.Is(err, engine.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil || len(p.Damaged) > 0 || p.Scanned != after+uint64(len(p.Events)) || p.Scanned == after {
			t.Fatalf("a page behind %d: %d events up to %d, damaged %v, %v", after, len(p.Events), p.Scanned, p.Damaged, err)
		}
		after = p.Scanned
	}
}

// same compares two readings of a log, which is dense.
func same(t *testing.T, want, got []engine.Event) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%d events beside %d", len(got), len(want))
	}
	for i := range want {
		if got[i].Offset != uint64(i)+1 || string(got[i].Wire) != string(want[i].Wire) {
			t.Fatalf("at place %d: offset %d and %d", i, got[i].Offset, want[i].Offset)
		}
	}
}

// NATS is far away: everything takes longer, and nothing is given up.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	p := newProxy(t, c.URL(0), func(p *proxy) { p.delay = 40 * time.Millisecond })
	l := logOf(t, open(t, Options{URLs: []string{p.url()}, Replicas: 1}), "n")
	far := logOf(t, open(t, Options{URLs: []string{p.url()}, Replicas: 1}), "n")
	for i := range 5 {
		var list []engine.Entry
		for k := range 100 {
			list = append(list, entry("n.a", fmt.Sprint(i, " ", k)))
		}
		put(t, l, list...)
		if r := put(t, l, list[7])[0]; !r.Duplicate || r.Offset != uint64(i*100+8) {
			t.Errorf("a duplicate: %+v", r)
		}
		en := entry("n.a", fmt.Sprint(i, " conditional"))
		en.Conditional, en.Expected = true, 1
		var conflict *engine.ConflictError
		res, err := far.Append(t.Context(), []engine.Entry{en}, engine.AppendEach)
		if err != nil || !errors.As(res[0].Err, &conflict) || conflict.Current != uint64(i*100+100) {
			t.Errorf("a condition that does not hold: %+v, %v", res, err)
		}
	}
	far.forget()
	same(t, everything(t, l), everything(t, far))
}
