package topic

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var (
	genName    = rapid.StringMatching(`[ab](\.[abc]){0,4}`)
	genPattern = rapid.StringMatching(`[ab](\.[abc*]){0,3}(\.>)?`)
)

// Random patterns come and go; at every step the index finds what a search through all held patterns finds.
func TestIndexAgainstList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x Index[string]
		held := map[string]bool{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			p, err := ParsePattern(genPattern.Draw(t, "pattern"))
			if err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "set") {
				x.Set(p, p.String())
				held[p.String()] = true
			} else {
				x.Delete(p)
				delete(held, p.String())
			}
			if x.Len() != len(held) {
				t.Fatalf("Len %d, want %d", x.Len(), len(held))
			}
			n := Stored(genName.Draw(t, "name"))
			var got, want []string
			x.Match(n, func(v string) { got = append(got, v) })
			for q := range held {
				if matches(q, n.String()) {
					want = append(want, q)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %v, want %v", n, got, want)
			}
		}
		for q := range held {
			x.Delete(Pattern{s: q, wildcard: true})
		}
		if !x.root.empty() {
			t.Fatal("nodes are left behind")
		}
	})
}

// An index treats the zero pattern like any other, but finds it for no topic.
func TestIndexZeroPattern(t *testing.T) {
	var x Index[int]
	x.Set(Pattern{}, 1)
	x.Match(Name{}, func(int) { t.Error("the zero name was found") })
	x.Match(mustName(t, "a"), func(int) { t.Error("the zero pattern was found") })
	if x.Delete(Pattern{}); x.Len() != 0 || !x.root.empty() {
		t.Errorf("after Delete: %d patterns", x.Len())
	}
}

func TestIndexReplaces(t *testing.T) {
	var x Index[int]
	p := mustPattern(t, "a.*.>")
	x.Set(p, 1)
	x.Set(p, 2)
	var got []int
	x.Match(mustName(t, "a.b.c"), func(v int) { got = append(got, v) })
	if !slices.Equal(got, []int{2}) || x.Len() != 1 {
		t.Errorf("found %v, %d patterns", got, x.Len())
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	var x Index[int]
	for i, s := range []string{"a.b.c", "a.*.c", "a.>", "a.b.*", "b.>"} {
		x.Set(mustPattern(t, s), i)
	}
	n, p, found := mustName(t, "a.b.c"), mustPattern(t, "a.*.>"), 0
	yield := func(int) { found++ }
	if allocs := testing.AllocsPerRun(100, func() {
		x.Match(n, yield)
		if !p.Match(n) {
			t.Error("no match")
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if found != 4*101 {
		t.Errorf("%d values found", found)
	}
}

func BenchmarkIndexMatch(b *testing.B) {
	for _, patterns := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("patterns=%d", patterns), func(b *testing.B) {
			var x Index[int]
			for i := range patterns {
				x.Set(mustPattern(b, fmt.Sprintf("quotes.s%d.last", i)), i)
			}
			x.Set(mustPattern(b, "quotes.>"), -1)
			x.Set(mustPattern(b, "quotes.*.last"), -2)
			n, found := mustName(b, "quotes.s0.last"), 0
			yield := func(int) { found++ }
			b.ReportAllocs()
			for b.Loop() {
				x.Match(n, yield)
			}
			if found != 3*b.N {
				b.Fatalf("%d found in %d lookups, want 3 in each", found, b.N)
			}
		})
	}
}
