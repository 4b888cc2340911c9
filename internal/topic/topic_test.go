package topic

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 256)
	many := strings.TrimSuffix(strings.Repeat("a.", 17), ".")
	for _, c := range []struct{ in, name, pattern string }{ // "" in name or pattern: valid
		{"quotes", "", ""},
		{"quotes.AAPL", "", ""},
		{"a_-:@=+Z9.b", "", ""},
		{long[:255], "", ""},
		{strings.TrimSuffix(strings.Repeat("a.", 16), "."), "", ""},
		{"", "it is empty", "it is empty"},
		{long, "it is longer than 255 bytes", "it is longer than 255 bytes"},
		{many, "it has more than 16 tokens", "it has more than 16 tokens"},
		{".a", "a token is empty; tokens are separated by single dots", "a token is empty; tokens are separated by single dots"},
		{"a..b", "a token is empty; tokens are separated by single dots", "a token is empty; tokens are separated by single dots"},
		{"a.", "a token is empty; tokens are separated by single dots", "a token is empty; tokens are separated by single dots"},
		{"a.*", "* and > stand only in patterns, each as a whole token", ""},
		{"a.>", "* and > stand only in patterns, each as a whole token", ""},
		{"a.*.b.>", "* and > stand only in patterns, each as a whole token", ""},
		{"*", "* and > stand only in patterns, each as a whole token", "the first token, the namespace, cannot be a wildcard"},
		{">", "* and > stand only in patterns, each as a whole token", "the first token, the namespace, cannot be a wildcard"},
		{"a.>.b", "* and > stand only in patterns, each as a whole token", "> stands only at the end"},
		{"a.b*", "* and > stand only in patterns, each as a whole token", "* and > stand only in patterns, each as a whole token"},
		{"a b", `" " is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`, `" " is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`},
		{"a\x00", `"\x00" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`, `"\x00" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`},
		{"a\r\nb", `"\r" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`, `"\r" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`},
		{"\u0430", `"\xd0" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`, `"\xd0" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`}, // Cyrillic a
	} {
		_, err := Parse(c.in)
		check(t, "topic", c.in, err, c.name)
		_, err = ParsePattern(c.in)
		check(t, "pattern", c.in, err, c.pattern)
	}
}

func check(t *testing.T, what, in string, err error, want string) {
	t.Helper()
	switch {
	case (err == nil) != (want == ""):
		t.Errorf("%s %q: %v, want %q", what, in, err, want)
	case err != nil && !strings.HasSuffix(err.Error(), ": "+want):
		t.Errorf("%s %q: %v, want it to end with %q", what, in, err, want)
	case err != nil && strings.ContainsAny(err.Error(), "\n\r\x00"):
		t.Errorf("%s %q: the error is not one printable line: %q", what, in, err)
	}
}

// matches is the definition of matching, token by token.
func matches(pattern, name string) bool {
	p, n := strings.Split(pattern, "."), strings.Split(name, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return len(n) > i
		case i >= len(n) || token != "*" && token != n[i]:
			return false
		}
	}
	return len(p) == len(n)
}

var (
	genName    = rapid.StringMatching(`[ab](\.[abc]){0,4}`)
	genPattern = rapid.StringMatching(`[ab](\.[abc*]){0,3}(\.>)?`)
)

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

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "a..b", "*", "a.*", "a.>", "a.>.b", "\x00", strings.Repeat("a.", 20)} {
		f.Add(s, "a.b.c")
	}
	f.Fuzz(func(t *testing.T, s, name string) {
		n, err := Parse(s)
		p, perr := ParsePattern(s)
		if err == nil {
			if perr != nil {
				t.Fatalf("%q is a topic but no pattern: %v", s, perr)
			}
			if !p.Match(n) || n.String() != s || len(s) > MaxBytes || strings.Count(s, ".") >= MaxTokens {
				t.Fatalf("%q was accepted", s)
			}
		}
		other, err := Parse(name)
		if err != nil || perr != nil {
			return
		}
		if got, want := p.Match(other), matches(s, name); got != want {
			t.Fatalf("%q matches %q: %v, want %v", s, name, got, want)
		}
		if p.Match(other) && (!strings.HasPrefix(name, p.Prefix()) || p.Namespace() != other.Namespace()) {
			t.Fatalf("%q matches %q, which lacks its prefix %q or namespace", s, name, p.Prefix())
		}
	})
}

func TestMatchDoesNotAllocate(t *testing.T) {
	var x Index[int]
	for i, s := range []string{"a.b.c", "a.*.c", "a.>", "a.b.*", "b.>"} {
		p, err := ParsePattern(s)
		if err != nil {
			t.Fatal(err)
		}
		x.Set(p, i)
	}
	n, found := Stored("a.b.c"), 0
	p, _ := ParsePattern("a.*.>")
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
	var x Index[int]
	for i := range 10_000 {
		p, _ := ParsePattern("quotes.s" + strings.Repeat("x", i%7) + "." + string(rune('a'+i%26)))
		x.Set(p, i)
	}
	p, _ := ParsePattern("quotes.>")
	x.Set(p, -1)
	n := Stored("quotes.sxxx.c")
	found := 0
	for b.Loop() {
		x.Match(n, func(int) { found++ })
	}
}
