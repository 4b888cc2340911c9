package auth

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/topic"
)

// names are all topics of up to four tokens over an alphabet with a token, x, that no pattern here holds.
var names = func() (all []topic.Name) {
	var grow func(prefix string, left int)
	grow = func(prefix string, left int) {
		all = append(all, topic.Stored(prefix))
		if left == 0 {
			return
		}
		for _, t := range []string{"a", "b", "x"} {
			grow(prefix+"."+t, left-1)
		}
	}
	for _, t := range []string{"a", "b", "x"} {
		grow(t, 3)
	}
	return all
}()

// reference decides by trying every topic there is.
func reference(p topic.Pattern, allow, deny []string) bool {
	matches := func(list []string, n topic.Name) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			if s == everything {
				return true
			}
			q, err := topic.ParsePattern(s)
			return err == nil && q.Match(n)
		})
	}
	for _, n := range names {
		if p.Match(n) && (!matches(allow, n) || matches(deny, n)) {
			return false
		}
	}
	return true
}

var (
	genGrant = rapid.OneOf(rapid.StringMatching(`[ab](\.[ab*]){0,2}(\.>)?`), rapid.StringMatching(`[ab](\.[ab*]){0,2}(\.>)?`), rapid.Just(everything))
	genAsked = rapid.StringMatching(`[abx](\.[abx*]){0,2}(\.>)?`)
)

// What is asked for is allowed if and only if everything it can match is granted by some role, and nothing of it denied by any.
func TestDecisionAgainstReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		roles := map[string]Role{}
		var allow, deny [verbs][]string
		for i := range rapid.IntRange(0, 3).Draw(t, "roles") {
			r := Role{Authenticated: true}
			for v := range verbs {
				r.Set(v, rapid.SliceOfN(genGrant, 0, 3).Draw(t, "allow"), rapid.SliceOfN(genGrant, 0, 1).Draw(t, "deny"))
			}
			if _, err := compile(r); err != nil {
				continue // it contradicts itself, or grants nothing
			}
			for v := range verbs {
				allow[v] = append(allow[v], r.Allow[v]...)
				deny[v] = append(deny[v], r.Deny[v]...)
			}
			roles[string(rune('a'+i))] = r
		}
		p, err := NewPolicy(roles)
		if err != nil {
			t.Fatal(err)
		}
		a := p.Access(Identity{Subject: "s", Issuer: "i"})
		asked, err := topic.ParsePattern(genAsked.Draw(t, "asked"))
		if err != nil {
			t.Fatal(err)
		}
		for v := range verbs {
			if got, want := a.Allowed(v, asked), reference(asked, allow[v], deny[v]); got != want {
				t.Fatalf("%s %v with %v but not %v: %v, want %v", v, asked, allow[v], deny[v], got, want)
			}
		}
	})
}

func access(t *testing.T, r Role, id Identity) *Access {
	t.Helper()
	p, err := NewPolicy(map[string]Role{"r": r})
	if err != nil {
		t.Fatal(err)
	}
	return p.Access(id)
}

func mayPublish(t *testing.T, a *Access, pattern string) bool {
	t.Helper()
	p, err := topic.ParsePattern(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return a.Allowed(Publish, p)
}

// What a client brings fills in one token, or part of one: it can bring no dot and no wildcard.
func TestPlaces(t *testing.T) {
	r := Role{Authenticated: true}
	r.Set(Publish, []string{"users.{sub}.>", "teams.{claim.teams}.in", "mix.v-{sub}-{claim.one}"}, []string{"users.*.{claim.never}", "teams.{claim.banned}.in"})
	of := func(sub string, claims map[string]any) *Access {
		return access(t, r, Identity{Subject: sub, Issuer: "i", claims: claims})
	}
	alice := of("alice", map[string]any{"teams": []any{"red", "blue", 7, "a.b", "*", ">"}, "one": "1", "never": "no", "banned": "none"})
	for pattern, want := range map[string]bool{
		"users.alice.x": true, "users.alice.>": false /* part of it is denied */, "users.alice.no": false, "users.bob.x": false, "users.*.x": false,
		"teams.red.in": true, "teams.blue.in": true, "teams.green.in": false, "teams.*.in": false, "teams.a.b.in": false,
		"mix.v-alice-1": true, "mix.v-alice-2": false, "mix.*": false,
	} {
		if got := mayPublish(t, alice, pattern); got != want {
			t.Errorf("alice, %s: %v", pattern, got)
		}
	}
	for _, sub := range []string{"*", ">", "a.b", "alice.>", "{sub}", "al/ice", "а"} { // the last is Cyrillic
		bad := of(sub, map[string]any{"never": "no", "banned": "none"})
		for _, pattern := range []string{"users.alice.x", "users.*.x", "users.a.b.x", "users.>", "mix.v--1"} {
			if mayPublish(t, bad, pattern) {
				t.Errorf("subject %q may publish to %s", sub, pattern)
			}
		}
	}
	// A claim that is missing grants nothing, and denies all that could have stood there.
	poor := of("alice", nil)
	if mayPublish(t, poor, "users.alice.x") || mayPublish(t, poor, "teams.red.in") || mayPublish(t, poor, "mix.v-alice-") {
		t.Error("a missing claim lets through")
	}
}

// A place in the namespace is the tenant; denied without a value, it denies everything.
func TestTenants(t *testing.T) {
	r := Role{Authenticated: true}
	r.Set(Publish, []string{"{claim.tenant}.>"}, nil)
	a := access(t, r, Identity{Subject: "s", Issuer: "i", claims: map[string]any{"tenant": "acme"}})
	if !mayPublish(t, a, "acme.x") || mayPublish(t, a, "other.x") || mayPublish(t, a, "acme") {
		t.Error("the tenant's own is not its own")
	}
	r.Set(Publish, []string{everything}, []string{"{claim.closed}.>"})
	if a := access(t, r, Identity{Subject: "s", Issuer: "i"}); mayPublish(t, a, "any.x") || a.Everywhere(Publish) {
		t.Error("what could not be filled in does not deny")
	}
	r.Set(Publish, []string{everything}, nil)
	if a := access(t, r, Identity{Subject: "s", Issuer: "i"}); !mayPublish(t, a, "any.x") || !a.Everywhere(Publish) || a.Everywhere(Admin) {
		t.Error("everything is not everywhere")
	}
	if !(*Access)(nil).Everywhere(Admin) {
		t.Error("without authentication nothing may be done")
	}
}

func TestWhoHasARole(t *testing.T) {
	token := Identity{Subject: "alice@x", Issuer: "main", claims: map[string]any{"groups": []any{"traders"}, "scope": "read write", "level": "7"}}
	other := token
	other.Issuer = "other"
	cert := Identity{Subject: "spiffe://acme/desk/1", Certificate: "spiffe://acme/desk/1"}
	both := Join(token, cert)
	for _, c := range []struct {
		name string
		role Role
		id   Identity
		want bool
	}{
		{"claim in a list", Role{Claims: []string{"groups=traders"}}, token, true},
		{"claim not in the list", Role{Claims: []string{"groups=trader"}}, token, false},
		{"word of scope", Role{Claims: []string{"scope=write"}}, token, true},
		{"all of scope", Role{Claims: []string{"scope=read write"}}, token, false},
		{"claim that is one text", Role{Claims: []string{"level=7"}}, token, true},
		{"of any issuer", Role{Claims: []string{"groups=traders"}}, other, true},
		{"of another issuer", Role{Claims: []string{"groups=traders"}, Issuers: []string{"main"}}, other, false},
		{"of this issuer", Role{Claims: []string{"groups=traders"}, Issuers: []string{"main"}}, token, true},
		{"subject", Role{Subjects: []string{"alice@x"}}, token, true},
		{"subject that begins so", Role{Subjects: []string{"alice*"}}, token, true},
		{"subject in another case", Role{Subjects: []string{"Alice@x"}}, token, false},
		{"subject is not a certificate's", Role{Subjects: []string{"spiffe://acme/desk/1"}}, cert, false},
		{"certificate", Role{Certificates: []string{"spiffe://acme/desk/*"}}, cert, true},
		{"certificate is not a subject", Role{Certificates: []string{"alice@x"}}, token, false},
		{"certificate beside a token", Role{Certificates: []string{"spiffe://acme/desk/1"}}, both, true},
		{"authenticated by certificate", Role{Authenticated: true}, cert, true},
		{"authenticated, of an issuer, by certificate", Role{Authenticated: true, Issuers: []string{"main"}}, cert, false},
		{"anonymous", Role{Anonymous: true}, Identity{}, true},
		{"anonymous is not authenticated", Role{Authenticated: true}, Identity{}, false},
		{"who is authenticated is not anonymous", Role{Anonymous: true}, token, false},
	} {
		c.role.Set(Publish, []string{"a"}, nil)
		if got := mayPublish(t, access(t, c.role, c.id), "a"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestRolesThatCannotBe(t *testing.T) {
	with := func(r Role, allow, deny []string) Role {
		r.Set(Publish, allow, deny)
		return r
	}
	all := Role{Authenticated: true}
	for _, c := range []struct {
		role Role
		want string
	}{
		{with(Role{}, []string{"a"}, nil), "nobody can have it"},
		{with(all, nil, nil), "it grants nothing"},
		{with(Role{Claims: []string{"x"}}, []string{"a"}, nil), `claim "x" is not NAME=VALUE`},
		{with(all, []string{"a.b"}, []string{"a.b"}), "it contradicts itself: publish a.b"},
		{with(all, []string{"a.b"}, []string{"a.>"}), "it contradicts itself: publish a.b"},
		{with(all, []string{"a.{sub}"}, []string{">"}), "it contradicts itself: publish a.{sub}"},
		{with(all, []string{"*.a"}, nil), "the first token, the namespace, cannot be a wildcard"},
		{with(all, []string{"a.{sub"}, nil), "{ is not closed"},
		{with(all, []string{"a.{user}"}, nil), "there is no place {user}"},
		{with(all, []string{"a.{claim.}"}, nil), "there is no place {claim.}"},
		{with(all, []string{"a.{claim.t}.{claim.t}"}, nil), "stands there twice"},
		{with(all, []string{"a..b"}, nil), "a token is empty"},
		{with(all, []string{"a.{sub}>"}, nil), "* and > stand only in patterns"},
	} {
		if _, err := NewPolicy(map[string]Role{"r": c.role}); err == nil || !strings.HasPrefix(err.Error(), "role r: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.role, err, c.want)
		}
	}
}

// Lists in claims are bounded, however long a token makes them.
func TestManyValues(t *testing.T) {
	var many []any
	for range 10_000 {
		many = append(many, "x")
	}
	many = append(many, "last")
	r := Role{Authenticated: true}
	r.Set(Publish, []string{"a.{claim.l}.{claim.m}"}, []string{"b.{claim.l}.{claim.m}"})
	a := access(t, r, Identity{Subject: "s", Issuer: "i", claims: map[string]any{"l": many, "m": many}})
	if n := len(a.allow[Publish].patterns); n > maxPatterns {
		t.Errorf("%d patterns", n)
	}
	if mayPublish(t, a, "a.last.last") || mayPublish(t, a, "b.x.x") {
		t.Error("too much was granted")
	}
}
