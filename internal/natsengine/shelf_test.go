package natsengine

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/topic"
)

// forget drops what a node has in memory, as if it had just begun.
func (l *log) forget() {
	l.mu.Lock()
	l.recent.Clear()
	l.mu.Unlock()
	l.shelf.clear()
}

// After a restart everybody reads the log: by pattern, from one place or another, a few pages at a time. They share what is read.
func TestMassResume(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	l := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	const events, readers, atOnce = 5120, 200, 8
	for i := 0; i < events; i += 512 {
		var list []engine.Entry
		for k := i; k < i+512; k++ {
			list = append(list, entry(fmt.Sprintf("n.%d", k%4), fmt.Sprint(k)))
		}
		put(t, l, list...)
	}
	l.forget()
	nc, err := nats.Connect(c.URL(0))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var gets atomic.Int64
	if _, err := nc.Subscribe("$JS.API.DIRECT.GET.>", func(*nats.Msg) { gets.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i := range readers {
		group.Go(func() error {
			p, err := topic.ParsePattern(fmt.Sprintf("n.%d", i%4))
			if err != nil {
				return err
			}
			after, got := uint64(i*4), 0
			for after < events {
				page, err := l.Read(t.Context(), engine.ReadRequest{Pattern: p, After: after})
				if err != nil || len(page.Damaged) > 0 {
					return fmt.Errorf("after %d: %v, %w", after, page.Damaged, err)
				}
				got, after = got+len(page.Events), page.Scanned
			}
			if want := (events - i*4) / 4; got != want {
				return fmt.Errorf("reader %d got %d events, want %d", i, got, want)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	// Each for itself it would be 1,000 and more.
	t.Logf("%d readers of %d events: %d direct gets", readers, events, gets.Load())
	seconds := int(time.Since(began)/time.Second) + 2 // a slow second may not have many reads
	if most := int64(events/bookEvents + seconds*manyReads); gets.Load() > most {
		t.Errorf("%d direct gets, at most %d", gets.Load(), most)
	}
}

// However many follow, a node has one consumer.
func TestOneConsumer(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	js := jetStream(t, c)
	l := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	other := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	put(t, l, entry("n.a", "1"))
	for range 50 {
		for _, l := range []*log{l, other} {
			tail, err := l.Tail(0)
			if err != nil {
				t.Fatal(err)
			}
			defer tail.Close()
			if page, err := tail.Next(t.Context()); err != nil || len(page.Events) != 1 {
				t.Fatalf("%+v, %v", page, err)
			}
		}
	}
	stream, err := js.Stream(t.Context(), l.stream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Consumers; n != 2 {
		t.Errorf("%d consumers for 100 tails at two nodes", n)
	}
}
