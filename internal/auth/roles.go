package auth

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/runnelhq/runnel/internal/topic"
)

// everything, in a role, is all topics of all namespaces; a topic's pattern cannot say that.
const everything = ">"

// Role is a role as it is configured. Whoever matches one of Claims, Subjects or Certificates has it, everybody who is authenticated if
// Authenticated, and everybody who is not if Anonymous.
type Role struct {
	Claims        []string // NAME=VALUE: the claim is VALUE, is a list that holds it, or (scope) is words of which one is it
	Subjects      []string // of tokens; a * at the end matches anything
	Certificates  []string // identities in certificates; a * at the end matches anything
	Issuers       []string // names of issuers: Claims, Subjects and Authenticated count only with their tokens; empty: all
	Authenticated bool
	Anonymous     bool

	// Patterns; {sub} and {claim.NAME} are filled in from the identity, > alone is everything. What is denied is denied whatever else allows.
	Allow, Deny [verbs][]string
}

// Set sets the patterns of a verb.
func (r *Role) Set(v Verb, allow, deny []string) { r.Allow[v], r.Deny[v] = allow, deny }

// Policy is all roles, checked.
type Policy struct {
	names []string
	roles map[string]*role
}

type role struct {
	Role
	claims      [][2]string
	allow, deny [verbs][]template
}

// NewPolicy checks roles; the error names the role, and what to do.
func NewPolicy(roles map[string]Role) (*Policy, error) {
	p := &Policy{names: slices.Sorted(maps.Keys(roles)), roles: map[string]*role{}}
	for _, name := range p.names {
		r, err := compile(roles[name])
		if err != nil {
			return nil, fmt.Errorf("role %s: %w", name, err)
		}
		p.roles[name] = r
	}
	return p, nil
}

func compile(config Role) (*role, error) {
	r := &role{Role: config}
	for _, c := range config.Claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok || name == "" || value == "" {
			return nil, fmt.Errorf("claim %q is not NAME=VALUE", c)
		}
		r.claims = append(r.claims, [2]string{name, value})
	}
	if len(r.claims)+len(r.Subjects)+len(r.Certificates) == 0 && !r.Authenticated && !r.Anonymous {
		return nil, fmt.Errorf("nobody can have it; say who with claims, subjects, certificates, authenticated or anonymous")
	}
	granted := 0
	for v := range verbs {
		var err error
		if r.allow[v], err = templates(config.Allow[v]); err != nil {
			return nil, fmt.Errorf("%s: %w", v, err)
		}
		if r.deny[v], err = templates(config.Deny[v]); err != nil {
			return nil, fmt.Errorf("deny_%s: %w", v, err)
		}
		for _, t := range r.allow[v] {
			for _, d := range r.deny[v] {
				if d.swallows(&t) {
					return nil, fmt.Errorf("it contradicts itself: %s %s is allowed and denied", v, t.text)
				}
			}
		}
		granted += len(r.allow[v]) + len(r.deny[v])
	}
	if granted == 0 {
		return nil, fmt.Errorf("it grants nothing; give it patterns to publish, subscribe, history or admin")
	}
	return r, nil
}

// Access is what an identity may do under the policy.
func (p *Policy) Access(id Identity) *Access {
	a := &Access{Identity: id}
	for _, name := range p.names {
		r := p.roles[name]
		if !r.has(&id) {
			continue
		}
		a.Roles = append(a.Roles, name)
		for v := range verbs {
			for _, t := range r.allow[v] {
				t.allow(&a.allow[v], &id)
			}
			for _, t := range r.deny[v] {
				t.deny(&a.deny[v], &id)
			}
		}
	}
	return a
}

// Admits reports whether clients that prove nothing may come in.
func (p *Policy) Admits() bool {
	return slices.ContainsFunc(p.names, func(name string) bool { return p.roles[name].Anonymous })
}

// Needs reports by which roles somebody is named by a token, and by which by a certificate.
func (p *Policy) Needs() (tokens, certificates []string) {
	for _, name := range p.names {
		if r := p.roles[name]; len(r.claims)+len(r.Subjects) > 0 {
			tokens = append(tokens, name)
		}
		if len(p.roles[name].Certificates) > 0 {
			certificates = append(certificates, name)
		}
	}
	return tokens, certificates
}

func (r *role) has(id *Identity) bool {
	if id.Anonymous() {
		return r.Anonymous
	}
	if id.Certificate != "" && slices.ContainsFunc(r.Certificates, func(s string) bool { return named(s, id.Certificate) }) {
		return true
	}
	if id.Issuer == "" {
		return r.Authenticated && len(r.Issuers) == 0
	}
	if len(r.Issuers) > 0 && !slices.Contains(r.Issuers, id.Issuer) {
		return false
	}
	if r.Authenticated || slices.ContainsFunc(r.Subjects, func(s string) bool { return named(s, id.Subject) }) {
		return true
	}
	return slices.ContainsFunc(r.claims, func(c [2]string) bool { return slices.Contains(id.values(c[0]), c[1]) })
}

// named reports whether an identity is s, or begins as s does up to a * at its end.
func named(s, identity string) bool {
	if prefix, ok := strings.CutSuffix(s, "*"); ok {
		return strings.HasPrefix(identity, prefix)
	}
	return s == identity
}

// maxValues is how many values of a list in a claim count.
const maxValues = 64

// values are the texts in a claim: it may be one, or a list of them. scope is words, as OAuth writes it (RFC 8693, 4.2).
func (id *Identity) values(claim string) []string {
	switch c := id.claims[claim].(type) {
	case string:
		if claim == "scope" {
			words := strings.Fields(c)
			return words[:min(len(words), maxValues)]
		}
		return []string{c}
	case []any:
		var list []string
		for _, e := range c[:min(len(c), maxValues)] {
			if s, ok := e.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

// template is a pattern with places to fill in.
type template struct {
	text  string
	parts []part
}

// part is a piece of text, or what is filled in for a place.
type part struct {
	text string
	sub  bool
	// claim is the name of a claim; empty: text or sub.
	claim string
}

func templates(texts []string) (list []template, err error) {
	for _, s := range texts {
		t, err := parseTemplate(s)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// parseTemplate reads a pattern with places. What stands around them must be a pattern.
func parseTemplate(s string) (template, error) {
	t := template{text: s}
	for rest := s; rest != ""; {
		before, after, ok := strings.Cut(rest, "{")
		if before != "" {
			t.parts = append(t.parts, part{text: before})
		}
		if !ok {
			break
		}
		place, behind, ok := strings.Cut(after, "}")
		claim, isClaim := strings.CutPrefix(place, "claim.")
		switch {
		case !ok:
			return t, fmt.Errorf("pattern %q: { is not closed", s)
		case place == "sub":
			t.parts = append(t.parts, part{sub: true})
		case isClaim && claim != "" && slices.ContainsFunc(t.parts, func(p part) bool { return p.claim == claim }):
			return t, fmt.Errorf("pattern %q: {%s} stands there twice", s, place)
		case isClaim && claim != "":
			t.parts = append(t.parts, part{claim: claim})
		default:
			return t, fmt.Errorf("pattern %q: there is no place {%s}; known are {sub} and {claim.NAME}", s, place)
		}
		rest = behind
	}
	if s == everything {
		return t, nil
	}
	if _, err := topic.ParsePattern(t.fill(func(part) string { return "x" })); err != nil {
		return t, fmt.Errorf("pattern %q: %w", s, err)
	}
	return t, nil
}

// swallows reports whether t denies all that u allows, whoever asks.
func (t *template) swallows(u *template) bool {
	if t.text == everything || t.text == u.text {
		return true
	}
	if t.places() || u.places() || u.text == everything {
		return false
	}
	mine, err1 := topic.ParsePattern(t.text)
	theirs, err2 := topic.ParsePattern(u.text)
	return err1 == nil && err2 == nil && theirs.Cover([]topic.Pattern{mine})
}

// places reports whether something is filled in.
func (t *template) places() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.place() })
}

func (p *part) place() bool { return p.sub || p.claim != "" }

func (t *template) fill(f func(part) string) string {
	var b strings.Builder
	for _, p := range t.parts {
		if p.place() {
			b.WriteString(f(p))
		} else {
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// token reports whether s can stand in a pattern as (a part of) one literal token: what fills a place must not bring dots or wildcards.
func token(s string) bool {
	_, err := topic.ParseNamespace(s)
	return err == nil
}

// allow adds the patterns that t is for an identity: one for each value of a claim that is a list. What cannot be filled in grants
// nothing.
func (t *template) allow(to *rules, id *Identity) {
	if t.text == everything {
		to.all = true
		return
	}
	for _, filled := range t.expand(id) {
		if p, err := topic.ParsePattern(filled); err == nil && len(to.patterns) < maxPatterns {
			to.patterns = append(to.patterns, p)
		}
	}
}

// maxPatterns bounds what an identity is granted for a verb: a list in a claim makes a pattern of each value.
const maxPatterns = 1024

// expand fills in every combination of values; none if a place cannot be filled.
func (t *template) expand(id *Identity) []string {
	filled := []string{""}
	for _, p := range t.parts {
		values := []string{p.text}
		switch {
		case p.sub:
			values = []string{id.Subject}
		case p.claim != "":
			values = id.values(p.claim)
		}
		var next []string
		for _, v := range values {
			if p.place() && !token(v) {
				continue
			}
			for _, f := range filled {
				if len(next) < maxPatterns {
					next = append(next, f+v)
				}
			}
		}
		filled = next
	}
	return filled
}

// deny adds what t denies to an identity. A place that cannot be filled in denies whatever could stand there: nothing that was to be
// denied is let through because a claim is missing.
func (t *template) deny(to *rules, id *Identity) {
	filled := t.expand(id)
	if len(filled) > 0 && len(to.patterns)+len(filled) <= maxPatterns && t.text != everything {
		for _, f := range filled {
			p, err := topic.ParsePattern(f)
			if err != nil { // too long to be a topic, so that there is nothing to deny; but who knows
				to.all = true
				return
			}
			to.patterns = append(to.patterns, p)
		}
		return
	}
	// Tokens with places become wildcards.
	const place = "\x00"
	tokens := strings.Split(t.fill(func(part) string { return place }), ".")
	for i, tok := range tokens {
		if strings.Contains(tok, place) {
			tokens[i] = "*"
		}
	}
	p, err := topic.ParsePattern(strings.Join(tokens, "."))
	if err != nil { // everything, or a place in the namespace
		to.all = true
		return
	}
	to.patterns = append(to.patterns, p)
}

// ExpiresWithin reports whether the identity ends within d of now.
func (id *Identity) ExpiresWithin(d time.Duration, now time.Time) bool {
	return !id.Expires.IsZero() && !now.Add(d).Before(id.Expires)
}
