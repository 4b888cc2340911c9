package ring

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/engine"
)

// Whatever is added and dropped, a page is what a plain list would give: dense from where it was asked for, and nothing that was dropped.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r Ring
		var groups [][]uint64
		next := uint64(1)
		held := func() map[uint64]bool {
			m := map[uint64]bool{}
			for _, g := range groups {
				for _, o := range g {
					m[o] = true
				}
			}
			return m
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				next += uint64(rapid.IntRange(0, 2).Draw(t, "gap"))
				var events []engine.Event
				var g []uint64
				for range rapid.IntRange(0, 5).Draw(t, "events") {
					events = append(events, engine.Event{Offset: next, Wire: make([]byte, 10)})
					g = append(g, next)
					next++
				}
				r.Add(events, 4)
				if g != nil {
					groups = append(groups, g)
				}
			},
			"drop": func(t *rapid.T) {
				if len(groups) == 0 {
					t.Skip("empty")
				}
				r.Drop()
				groups = groups[1:]
			},
			"": func(t *rapid.T) {
				m := held()
				if r.Bytes() != len(m)*(EventCost+4+10) {
					t.Fatalf("%d bytes for %d events", r.Bytes(), len(m))
				}
				first, last, ok := r.Oldest()
				if ok != (len(groups) > 0) || ok && (first != groups[0][0] || last != groups[0][len(groups[0])-1]) {
					t.Fatalf("oldest %d to %d, %v", first, last, ok)
				}
				at := rapid.Uint64Range(0, next+2).Draw(t, "at")
				page := r.From(at)
				if (len(page) > 0) != m[at] {
					t.Fatalf("from %d: %d events", at, len(page))
				}
				for i, ev := range page {
					if ev.Offset != at+uint64(i) || !m[ev.Offset] {
						t.Fatalf("from %d: %d at %d", at, ev.Offset, i)
					}
				}
				if n := uint64(len(page)); n > 0 && m[at+n] {
					t.Fatalf("the page from %d ends before %d, which is held", at, at+n)
				}
				want := uint64(0)
				for o := at; o < next; o++ {
					if m[o] {
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
