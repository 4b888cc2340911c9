// Package auth says who a client is and what it may do. Identities come from tokens (Verifier) and certificates; rights from Roles,
// by one decision function on parsed names (Access); Revocations take them back. Nothing here knows of gRPC or sessions.
//
// An error of a refusal holds the exact reason, which is for the log only: clients are told that they were refused, not why. No
// error holds a token, a key, or a part of one.
//
// All types are safe for concurrent use.
package auth

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/runnelhq/runnel/internal/topic"
)

// Verb is what a role grants on a pattern.
type Verb uint8

// The verbs.
const (
	Publish Verb = iota
	// Subscribe is to follow topics, from any start: whoever may resume may read what is retained.
	Subscribe
	// History is to read and list without following.
	History
	// Admin is to look into and to act upon sessions and namespaces; server-wide acts need it on everything.
	Admin
	verbs
)

// String is the verb as configuration and logs spell it.
func (v Verb) String() string {
	return [...]string{"publish", "subscribe", "history", "admin", "?"}[min(v, verbs)]
}

// Identity is what is proven of a client.
type Identity struct {
	// Subject is who it is: of the token if there is one, else of the certificate; empty for anonymous clients.
	Subject string
	// Issuer is the configured name of the token's issuer; empty without a token.
	Issuer string
	// Clients are further client ids that the token allows, besides Subject.
	Clients []string
	// TokenID is the token's jti.
	TokenID string
	// Certificate is the identity in the client's certificate.
	Certificate string
	// Issued is when the token was issued, or the certificate began to be valid; zero if that is not known.
	Issued time.Time
	// Expires is when the identity ends; zero: never.
	Expires time.Time

	claims map[string]any
}

// Anonymous reports whether nothing is proven of the client.
func (id *Identity) Anonymous() bool { return id.Subject == "" }

// Why clients are refused. What Verify and Identify return wraps one of them, with the exact reason for the log.
var (
	// ErrNoCredentials: there is neither a token nor a certificate, and no role for anonymous clients.
	ErrNoCredentials = errors.New("no token and no certificate")
	// ErrBadToken: the token is not valid here.
	ErrBadToken = errors.New("bad token")
	// ErrRevoked: the token, its subject or the client was revoked.
	ErrRevoked = errors.New("revoked")
)

// Access is an identity with its rights at one moment. It is immutable. A nil Access may do everything: authentication is off.
type Access struct {
	Identity Identity
	// Roles are the names of the roles, in order.
	Roles []string

	allow, deny [verbs]rules
}

// rules are patterns, or everything.
type rules struct {
	all      bool
	patterns []topic.Pattern
}

func (r *rules) match(n topic.Name) bool {
	if r.all {
		return true
	}
	for _, p := range r.patterns {
		if p.Match(n) {
			return true
		}
	}
	return false
}

func (r *rules) overlaps(p topic.Pattern) bool {
	if r.all {
		return true
	}
	for _, q := range r.patterns {
		if q.Overlaps(p) {
			return true
		}
	}
	return false
}

// Allowed is the one decision: whether everything that p can match is granted, and none of it denied.
func (a *Access) Allowed(v Verb, p topic.Pattern) bool {
	if a == nil {
		return true
	}
	if n, exact := p.Exact(); exact { // the same answer, cheaper: this one is asked for every event
		return a.allow[v].match(n) && !a.deny[v].match(n)
	}
	return (a.allow[v].all || p.Cover(a.allow[v].patterns)) && !a.deny[v].overlaps(p)
}

// Everywhere reports whether the verb is granted on everything, and nowhere denied.
func (a *Access) Everywhere(v Verb) bool {
	return a == nil || a.allow[v].all && !a.deny[v].all && len(a.deny[v].patterns) == 0
}

// Grants lists the patterns that are granted and denied for a verb, for people; ">" is everything.
func (a *Access) Grants(v Verb) (allow, deny []string) {
	if a == nil {
		return []string{everything}, nil
	}
	return a.allow[v].list(), a.deny[v].list()
}

func (r *rules) list() (list []string) {
	if r.all {
		return []string{everything}
	}
	for _, p := range r.patterns {
		list = append(list, p.String())
	}
	return list
}

// Join is the identity of who shows a token and a certificate: the token says who it is, the certificate counts for roles, and the
// first of both to expire ends it.
func Join(token, certificate Identity) Identity {
	token.Certificate = certificate.Certificate
	if !certificate.Expires.IsZero() && certificate.Expires.Before(token.Expires) {
		token.Expires = certificate.Expires
	}
	return token
}

// Kind says which part of a certificate names a client.
type Kind string

// The parts.
const (
	URI  Kind = "uri" // subject alternative name
	DNS  Kind = "dns" // subject alternative name
	Name Kind = "cn"  // common name
)

// Certified is the identity in a client's certificate, which must have been verified; false if it holds none.
func Certified(c *x509.Certificate, kind Kind) (Identity, bool) {
	var names []string
	switch kind {
	case URI:
		for _, u := range c.URIs {
			names = append(names, u.String())
		}
	case DNS:
		names = c.DNSNames
	case Name:
		names = []string{c.Subject.CommonName}
	}
	// Of several names any could be meant, so that none is proven.
	if len(names) != 1 || !Printable(names[0]) {
		return Identity{}, false
	}
	return Identity{Subject: names[0], Certificate: names[0], Issued: c.NotBefore, Expires: c.NotAfter}, true
}

// maxIdentity is the longest subject, client id or token id.
const maxIdentity = 128

// Printable reports whether s can be a subject, client id or token id: printable ASCII without spaces, so that it can be sent in
// metadata and forges nothing in a log.
func Printable(s string) bool {
	if s == "" || len(s) > maxIdentity {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
