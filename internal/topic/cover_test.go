package topic

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// names are all names of at most four tokens over an alphabet with a token, x, that no generated pattern holds.
var names = func() (all []Name) {
	var grow func(prefix string, left int)
	grow = func(prefix string, left int) {
		all = append(all, Stored(prefix))
		if left == 0 {
			return
		}
		for _, t := range []string{"a", "b", "x"} {
			grow(prefix+"."+t, left-1)
		}
	}
	grow("a", 3)
	grow("b", 3)
	return all
}()

var genShort = rapid.StringMatching(`[ab](\.[ab*]){0,2}(\.>)?`)

// Cover and Overlaps against all names there are. A > matches longer names too, and what is decided for four tokens holds for more,
// since no pattern here has more than three before it.
func TestCoverAgainstAllNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := mustDraw(t, "p")
		var by []Pattern
		for range rapid.IntRange(0, 4).Draw(t, "patterns") {
			by = append(by, mustDraw(t, "by"))
		}
		covered, overlaps := true, make([]bool, len(by))
		for _, n := range names {
			if !p.Match(n) {
				continue
			}
			one := false
			for i, q := range by {
				if q.Match(n) {
					one, overlaps[i] = true, true
				}
			}
			covered = covered && one
		}
		if got := p.Cover(by); got != covered {
			t.Fatalf("%v.Cover(%v) = %v", p, by, got)
		}
		for i, q := range by {
			if got := p.Overlaps(q); got != overlaps[i] {
				t.Fatalf("%v.Overlaps(%v) = %v", p, q, got)
			}
		}
	})
}

func mustDraw(t *rapid.T, label string) Pattern {
	p, err := ParsePattern(genShort.Draw(t, label))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Together patterns cover what none covers alone; and a pattern so long that it cannot reach 16 tokens needs no cover there.
func TestCoverEdges(t *testing.T) {
	long := "a." + strings.Repeat("x", MaxBytes-6)
	for _, c := range []struct {
		p    string
		by   []string
		want bool
	}{
		{"a.>", []string{"a.*", "a.*.>"}, true},
		{"a.>", []string{"a.*", "a.*.*.>"}, false},
		{"a.>", []string{"a.*", "a.*.*", "a.*.*.*"}, false},
		{"a.*", []string{"a.b", "a.c"}, false},
		{"a", []string{"a.>"}, false},
		{"a.b", nil, false},
		{long + ".>", []string{long + ".*", long + ".*.*"}, true},
		{long + ".>", []string{long + ".*"}, false},
		{strings.Repeat("a.", 15) + "a", []string{"a.>"}, true},
		{strings.Repeat("a.", 15) + ">", []string{strings.Repeat("a.", 15) + "*"}, true},
	} {
		var by []Pattern
		for _, s := range c.by {
			by = append(by, mustPattern(t, s))
		}
		if got := mustPattern(t, c.p).Cover(by); got != c.want {
			t.Errorf("%s covered by %v: %v", c.p, c.by, got)
		}
	}
	var none Pattern
	if !none.Cover(nil) || none.Overlaps(none) || mustPattern(t, "a.>").Cover([]Pattern{none}) {
		t.Error("the zero pattern matches something")
	}
}
