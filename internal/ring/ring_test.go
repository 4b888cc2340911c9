package ring

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/engine"
)

// Whatever is added and dropped, a page is dense, begins where it was asked for and has nothing that was dropped, and what is read stays as it was.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Ring
		var held []uint64 // in order
		size := map[uint64]int{}
		next := uint64(1)
		type read struct {
			at   uint64
			page []engine.Event
		}
		var reads []read
		dense := func(at uint64, page []engine.Event) {
			for i, ev := range page {
				if ev.Offset != at+uint64(i) || len(ev.Wire) != size[ev.Offset] {
					t.Fatalf("from %d: %d (%d bytes) at %d", at, ev.Offset, len(ev.Wire), i)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				next += uint64(rapid.IntRange(0, 2).Draw(t, "gap"))
				n := rapid.SampledFrom([]int{0, 1, 2, 5, groupEvents + 1}).Draw(t, "events")
				events := make([]engine.Event, n, n+3) // what lies behind is not the ring's
				for i := range events {
					bytes := rapid.SampledFrom([]int{0, 10, groupBytes / 4}).Draw(t, "bytes")
					events[i] = engine.Event{Offset: next, Wire: make([]byte, bytes)}
					size[next] = bytes
					held = append(held, next)
					next++
				}
				r.Add(events, 4)
				for _, ev := range events[n : n+3] {
					if ev.Offset != 0 {
						t.Fatal("the slice was written behind its end")
					}
				}
			},
			"drop": func(t *rapid.T) {
				first, last, ok := r.Oldest()
				if ok != (len(held) > 0) || ok && first != held[0] {
					t.Fatalf("oldest %d to %d, %v", first, last, ok)
				}
				if !ok {
					t.Skip("empty")
				}
				if n := last - first + 1; n > uint64(len(held)) || held[n-1] != last {
					t.Fatalf("oldest %d to %d of %v", first, last, held)
				}
				r.Drop()
				held = held[last-first+1:]
			},
			"": func(t *rapid.T) {
				bytes, there := 0, map[uint64]bool{}
				for _, o := range held {
					bytes += EventCost + 4 + size[o]
					there[o] = true
				}
				if r.Bytes() != bytes {
					t.Fatalf("%d bytes, not %d, for %d events", r.Bytes(), bytes, len(held))
				}
				at := rapid.Uint64Range(0, next+2).Draw(t, "at")
				page := r.From(at)
				if (len(page) > 0) != there[at] {
					t.Fatalf("from %d: %d events", at, len(page))
				}
				for _, ev := range page {
					if !there[ev.Offset] {
						t.Fatalf("from %d: %d was dropped", at, ev.Offset)
					}
				}
				reads = append(reads, read{at, page})
				for _, one := range reads {
					dense(one.at, one.page)
				}
				want := uint64(0)
				for _, o := range held {
					if o >= at {
						want = o
						break
					}
				}
				if got := r.Above(at); got != want {
					t.Fatalf("above %d: %d, want %d", at, got, want)
				}
			},
		})
	})
}

// Events that came one by one are read together: a reader that is behind must not pay for each of them.
func TestTogether(t *testing.T) {
	var r Ring
	const events = 100
	for i := range uint64(events) {
		r.Add([]engine.Event{{Offset: i + 1}}, 0)
	}
	if page := r.From(2); len(page) != events-1 {
		t.Errorf("%d events from offset 2, want %d", len(page), events-1)
	}
	if n := testing.AllocsPerRun(100, func() { r.From(2) }); n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
}
