// Package topic holds the one reading of names and patterns. A name or pattern is parsed once, at the edge, and everything
// else (storage keys, matching, limits, permissions) is computed from the parsed value, so that what was checked and what is
// done can never be two different names. Values are immutable, comparable and safe for concurrent use.
package topic

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxBytes is the longest name or pattern, in bytes.
	MaxBytes = 255
	// MaxTokens is the largest number of tokens in a name or pattern.
	MaxTokens = 16
)

const (
	separator = '.'
	one       = "*" // matches exactly one token
	tail      = ">" // matches one or more tokens, at the end
)

// Name is a valid topic name. The zero Name is no topic.
type Name struct{ s string }

// Pattern is a valid pattern: a topic name in which tokens after the first may be wildcards. The zero Pattern matches nothing.
type Pattern struct {
	s        string
	wildcard bool
}

// Parse reads a topic name. The error says in one line what is wrong with it.
func Parse(s string) (Name, error) {
	if _, err := scan(s, false); err != nil {
		return Name{}, fmt.Errorf("bad topic %s: %w", quote(s), err)
	}
	return Name{s}, nil
}

// Stored returns the name s, which must have been parsed before it was stored.
func Stored(s string) Name { return Name{s} }

// ParsePattern reads a pattern. The error says in one line what is wrong with it.
func ParsePattern(s string) (Pattern, error) {
	wildcard, err := scan(s, true)
	if err != nil {
		return Pattern{}, fmt.Errorf("bad pattern %s: %w", quote(s), err)
	}
	return Pattern{s, wildcard}, nil
}

// ParseNamespace reads a namespace: one token.
func ParseNamespace(s string) (string, error) {
	if strings.IndexByte(s, separator) >= 0 {
		return "", fmt.Errorf("bad namespace %s: it is one token, without dots", quote(s))
	}
	if _, err := scan(s, false); err != nil {
		return "", fmt.Errorf("bad namespace %s: %w", quote(s), err)
	}
	return s, nil
}

func (n Name) String() string { return n.s }

// Namespace is the name's first token.
func (n Name) Namespace() string { return first(n.s) }

// Pattern returns the pattern that matches exactly n.
func (n Name) Pattern() Pattern { return Pattern{s: n.s} }

func (p Pattern) String() string { return p.s }

// Namespace is the pattern's first token, which is never a wildcard.
func (p Pattern) Namespace() string { return first(p.s) }

// Exact returns the only name that p matches, if p has no wildcard.
func (p Pattern) Exact() (Name, bool) {
	if p.wildcard || p.s == "" {
		return Name{}, false
	}
	return Name{p.s}, true
}

// Prefix is the longest string that every name matched by p begins with.
func (p Pattern) Prefix() string {
	if !p.wildcard {
		return p.s
	}
	rest := p.s
	for {
		token, after, _ := strings.Cut(rest, ".")
		if token == one || token == tail {
			return p.s[:len(p.s)-len(rest)]
		}
		rest = after
	}
}

// Match reports whether p matches n. It does not allocate.
func (p Pattern) Match(n Name) bool {
	if !p.wildcard {
		return p.s == n.s && n.s != ""
	}
	pattern, name := p.s, n.s
	for {
		pt, pmore := cut(&pattern)
		if pt == tail {
			return true
		}
		nt, nmore := cut(&name)
		if pt != one && pt != nt {
			return false
		}
		if !pmore || !nmore {
			return pmore == nmore
		}
	}
}

// cut takes the first token off s and reports whether another follows.
func cut(s *string) (token string, more bool) {
	i := strings.IndexByte(*s, separator)
	if i < 0 {
		token, *s = *s, ""
		return token, false
	}
	token, *s = (*s)[:i], (*s)[i+1:]
	return token, true
}

func first(s string) string {
	token, _ := cut(&s)
	return token
}

var (
	errEmpty  = errors.New("it is empty")
	errLong   = fmt.Errorf("it is longer than %d bytes", MaxBytes)
	errTokens = fmt.Errorf("it has more than %d tokens", MaxTokens)
	errToken  = errors.New("a token is empty; tokens are separated by single dots")
	errFirst  = errors.New("the first token, the namespace, cannot be a wildcard")
	errTail   = errors.New("> stands only at the end")
	errWild   = errors.New("* and > stand only in patterns, each as a whole token")
)

// scan checks s and reports whether it holds a wildcard.
func scan(s string, pattern bool) (wildcard bool, err error) {
	switch {
	case s == "":
		return false, errEmpty
	case len(s) > MaxBytes:
		return false, errLong
	}
	tokens := 0
	for rest, more := s, true; more; tokens++ {
		var token string
		token, more = cut(&rest)
		switch {
		case tokens == MaxTokens:
			return false, errTokens
		case token == "":
			return false, errToken
		case token == one || token == tail:
			switch {
			case !pattern:
				return false, errWild
			case tokens == 0:
				return false, errFirst
			case token == tail && more:
				return false, errTail
			}
			wildcard = true
			continue
		}
		if err := scanToken(token); err != nil {
			return false, err
		}
	}
	return wildcard, nil
}

func scanToken(token string) error {
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '_', c == '-', c == ':', c == '@', c == '=', c == '+':
		case c == '*' || c == '>':
			return errWild
		default:
			return fmt.Errorf("%s is not allowed; tokens hold ASCII letters, digits and _ - : @ = +", quote(token[i:i+1]))
		}
	}
	return nil
}

// quote shows what a client sent in a bounded, printable form.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%+q...", s[:most])
	}
	return fmt.Sprintf("%+q", s)
}
