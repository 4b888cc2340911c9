package topic

import (
	"strings"
	"testing"
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

func TestErrorsAreBounded(t *testing.T) {
	for _, in := range []string{strings.Repeat("\x00", 10_000), strings.Repeat("é", 120), strings.Repeat("a", 10_000)} {
		_, err := Parse(in)
		if err == nil || len(err.Error()) > 512 {
			t.Errorf("%.10q...: the error has %d bytes: %v", in, len(err.Error()), err)
		}
	}
}

func TestParseNamespace(t *testing.T) {
	for _, c := range []struct{ in, want string }{ // want "": valid
		{"quotes", ""},
		{"a:1@x=y+z_-", ""},
		{"", `bad namespace "": it is empty`},
		{"quotes.AAPL", `bad namespace "quotes.AAPL": it is one token, without dots`},
		{"*", `bad namespace "*": * and > stand only in patterns, each as a whole token`},
		{"a/b", `bad namespace "a/b": "/" is not allowed; tokens hold ASCII letters, digits and _ - : @ = +`},
	} {
		got, err := ParseNamespace(c.in)
		switch {
		case c.want == "" && (err != nil || got != c.in):
			t.Errorf("%q: %q, %v", c.in, got, err)
		case c.want != "" && (err == nil || err.Error() != c.want || got != ""):
			t.Errorf("%q: %q, %v, want %q", c.in, got, err, c.want)
		}
	}
}

func TestParts(t *testing.T) {
	for _, c := range []struct {
		pattern, namespace, prefix string
		exact                      bool
	}{
		{"a", "a", "a", true},
		{"a.b.c", "a", "a.b.c", true},
		{"a.>", "a", "a.", false},
		{"a.*", "a", "a.", false},
		{"a.b.*.c", "a", "a.b.", false},
		{"ab.cd.*.>", "ab", "ab.cd.", false},
	} {
		p := mustPattern(t, c.pattern)
		if p.String() != c.pattern || p.Namespace() != c.namespace || p.Prefix() != c.prefix {
			t.Errorf("%s: %s, namespace %q, prefix %q", c.pattern, p, p.Namespace(), p.Prefix())
		}
		n, exact := p.Exact()
		if exact != c.exact || exact && (n.String() != c.pattern || n.Pattern() != p || n.Namespace() != c.namespace) {
			t.Errorf("%s: exact %v %q", c.pattern, exact, n)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct{ pattern, yes, no string }{ // names separated by spaces
		{"a", "a", "b aa a.b"},
		{"a.b", "a.b", "a a.bb a.b.c b.b"},
		{"a.*", "a.b a.cc", "a a.b.c b.b"},
		{"a.>", "a.b a.b.c a.b.c.d", "a aa.b b.c"},
		{"a.*.c", "a.b.c", "a.c a.b a.b.d a.b.c.c"},
		{"a.*.>", "a.b.c a.b.c.d", "a a.b"},
		{"a.b.>", "a.b.c", "a.b a.c.b ab.c"},
	} {
		p := mustPattern(t, c.pattern)
		for _, s := range strings.Fields(c.yes) {
			if !p.Match(mustName(t, s)) {
				t.Errorf("%s does not match %s", p, s)
			}
		}
		for _, s := range strings.Fields(c.no) {
			if p.Match(mustName(t, s)) {
				t.Errorf("%s matches %s", p, s)
			}
		}
	}
}

func TestZeroValuesMatchNothing(t *testing.T) {
	if (Pattern{}).Match(Name{}) || (Pattern{}).Match(mustName(t, "a")) || mustPattern(t, "a.>").Match(Name{}) {
		t.Error("a zero value matches")
	}
	if n, ok := (Pattern{}).Exact(); ok {
		t.Errorf("the zero pattern is exactly %q", n)
	}
}

func mustName(t testing.TB, s string) Name {
	t.Helper()
	n, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustPattern(t testing.TB, s string) Pattern {
	t.Helper()
	p, err := ParsePattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
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

var seeds = []string{"", "a", "a.b", "a.b.c", "a..b", "*", "a.*", "a.>", "a.*.>", "a.>.b", "\x00", strings.Repeat("a.", 20), strings.Repeat("é", 200)}

func FuzzParse(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			oneLine(t, err)
			return
		}
		if n.String() != s || len(s) > MaxBytes || strings.Count(s, ".") >= MaxTokens || strings.ContainsAny(s, "*> \x00\n/") {
			t.Fatalf("%q was accepted", s)
		}
		if p, err := ParsePattern(s); err != nil || p != n.Pattern() || !p.Match(n) {
			t.Fatalf("%q is a topic but not its own pattern: %v", s, err)
		}
		if ns, err := ParseNamespace(n.Namespace()); err != nil || ns != n.Namespace() {
			t.Fatalf("%q has the namespace %q: %v", s, n.Namespace(), err)
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePattern(s)
		if err != nil {
			oneLine(t, err)
			return
		}
		// Any token in place of the wildcards makes a topic that the pattern matches.
		n, err := Parse(strings.NewReplacer("*", "w", ">", "w").Replace(s))
		if err != nil || !p.Match(n) || p.Namespace() != n.Namespace() {
			t.Fatalf("%q was accepted: %v", s, err)
		}
		if _, exact := p.Exact(); exact == strings.ContainsAny(s, "*>") {
			t.Fatalf("%q is exact: %v", s, exact)
		}
	})
}

func FuzzMatch(f *testing.F) {
	for _, s := range seeds {
		f.Add(s, "a.b.c")
		f.Add("a.*.c", s)
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, perr := ParsePattern(pattern)
		n, nerr := Parse(name)
		if perr != nil || nerr != nil {
			return
		}
		want := matches(pattern, name)
		if got := p.Match(n); got != want {
			t.Fatalf("%q matches %q: %v, want %v", pattern, name, got, want)
		}
		if want && (!strings.HasPrefix(name, p.Prefix()) || p.Namespace() != n.Namespace()) {
			t.Fatalf("%q matches %q, which lacks its prefix %q or its namespace", pattern, name, p.Prefix())
		}
		var x Index[bool]
		x.Set(p, true)
		found := false
		x.Match(n, func(bool) { found = true })
		if found != want {
			t.Fatalf("an index with %q finds it for %q: %v, want %v", pattern, name, found, want)
		}
	})
}

func oneLine(t *testing.T, err error) {
	t.Helper()
	if s := err.Error(); len(s) > 512 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Fatalf("not one short printable line: %q", s)
	}
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("quotes.nasdaq.AAPL"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	p, n := mustPattern(b, "quotes.*.AAPL"), mustName(b, "quotes.nasdaq.AAPL")
	b.ReportAllocs()
	for b.Loop() {
		if !p.Match(n) {
			b.Fatal("no match")
		}
	}
}
