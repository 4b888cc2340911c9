package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

const (
	// maxToken is the longest token that is looked at, in bytes.
	maxToken = 8 << 10
	// skew is how much the clocks of issuers may be ahead. It counts for nbf and iat; an expired token is expired.
	skew = 30 * time.Second
)

// Algorithms are the signatures there are. One issuer has either the first or some of the others: where both were allowed, a public key
// could be taken for a secret.
var Algorithms = []string{"HS256", "RS256", "PS256", "ES256", "EdDSA"}

// Issuer is an issuer of tokens as it is configured.
type Issuer struct {
	Issuer     string   // iss, exactly
	Audience   []string // one of them must be in aud
	Algorithms []string // of Algorithms
	Keys       []string // files: PEM public keys or certificates, a JWK or JWKS, or (HS256) the secret, base64 or as it is
	JWKS       string   // https URL (http on loopback) from which keys are fetched, again and again
	// ClientClaim names the claim with further client ids that the subject may use; default client_id.
	ClientClaim string
	// SubjectPrefix is put before the subject, so that issuers can be kept apart where subjects are used as names.
	SubjectPrefix string
}

// Verifier checks tokens.
type Verifier struct {
	issuers []*issuer
}

type issuer struct {
	name   string
	config Issuer
	parser *jwt.Parser
	keys   *keys
}

// NewVerifier checks the configuration of issuers and reads their key files. Errors name the issuer, and what to do. Keys with a URL are
// fetched while Run runs.
func NewVerifier(issuers map[string]Issuer) (*Verifier, error) {
	v := &Verifier{}
	for name, config := range issuers {
		is, err := newIssuer(name, config)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", name, err)
		}
		for _, other := range v.issuers {
			if other.config.Issuer == config.Issuer {
				return nil, fmt.Errorf("issuers %s and %s have the same iss %q; give each its own", min(name, other.name), max(name, other.name), config.Issuer)
			}
		}
		v.issuers = append(v.issuers, is)
	}
	slices.SortFunc(v.issuers, func(a, b *issuer) int { return strings.Compare(a.name, b.name) })
	return v, nil
}

func newIssuer(name string, config Issuer) (*issuer, error) {
	if config.ClientClaim == "" {
		config.ClientClaim = "client_id"
	}
	symmetric := slices.Contains(config.Algorithms, "HS256")
	switch {
	case config.Issuer == "":
		return nil, errors.New("issuer is missing; it is the iss of the tokens")
	case len(config.Audience) == 0:
		return nil, errors.New("audience is missing; it is the aud that tokens for this server have")
	case len(config.Algorithms) == 0:
		return nil, fmt.Errorf("algorithms are missing; choose from %s", strings.Join(Algorithms, ", "))
	case symmetric && len(config.Algorithms) > 1:
		return nil, errors.New("HS256 cannot stand beside other algorithms: a public key could be taken for a secret; make two issuers of it")
	case symmetric && config.JWKS != "":
		return nil, errors.New("HS256 has a secret, which cannot come from a URL; put it into a file and name it in keys")
	case len(config.Keys) == 0 && config.JWKS == "":
		return nil, errors.New("there are no keys; name files in keys, or a URL in jwks")
	case config.SubjectPrefix != "" && !Printable(config.SubjectPrefix):
		return nil, errors.New("subject_prefix is not up to 128 printable ASCII characters without spaces")
	}
	for _, a := range config.Algorithms {
		if !slices.Contains(Algorithms, a) {
			return nil, fmt.Errorf("algorithm %q is not one of %s", a, strings.Join(Algorithms, ", "))
		}
	}
	k, err := newKeys(config)
	if err != nil {
		return nil, err
	}
	return &issuer{name: name, config: config, keys: k, parser: jwt.NewParser(
		jwt.WithValidMethods(config.Algorithms), jwt.WithIssuer(config.Issuer), jwt.WithAudience(config.Audience...),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(skew), jwt.WithStrictDecoding(),
	)}, nil
}

// Run fetches keys that have a URL, at first and again and again, until ctx ends. logf says what went wrong.
func (v *Verifier) Run(ctx context.Context, logf func(issuer string, err error)) {
	run(ctx, v.issuers, logf)
}

// Issuers are the configured names.
func (v *Verifier) Issuers() (names []string) {
	for _, is := range v.issuers {
		names = append(names, is.name)
	}
	return names
}

// Verify checks a token and returns whom it names.
func (v *Verifier) Verify(ctx context.Context, token string) (Identity, error) {
	id, err := v.verify(ctx, token)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrBadToken, err)
	}
	return id, nil
}

func (v *Verifier) verify(ctx context.Context, token string) (Identity, error) {
	if len(token) > maxToken {
		return Identity{}, fmt.Errorf("it has %d bytes, and at most %d are looked at", len(token), maxToken)
	}
	var unverified jwt.MapClaims
	if _, _, err := jwt.NewParser(jwt.WithStrictDecoding()).ParseUnverified(token, &unverified); err != nil {
		return Identity{}, errors.New("it is not a JWT")
	}
	iss, _ := unverified["iss"].(string)
	at := slices.IndexFunc(v.issuers, func(is *issuer) bool { return is.config.Issuer == iss })
	if at < 0 {
		return Identity{}, errors.New("its issuer is not configured")
	}
	return v.issuers[at].verify(ctx, token)
}

func (is *issuer) verify(ctx context.Context, token string) (Identity, error) {
	claims := jwt.MapClaims{}
	if _, err := is.parser.ParseWithClaims(token, claims, is.keys.find(ctx)); err != nil {
		return Identity{}, fmt.Errorf("issuer %s: %w", is.name, plain(err))
	}
	sub, _ := claims["sub"].(string)
	if sub = is.config.SubjectPrefix + sub; sub == is.config.SubjectPrefix || !Printable(sub) {
		return Identity{}, fmt.Errorf("issuer %s: its subject is not 1 to %d printable ASCII characters without spaces", is.name, maxIdentity)
	}
	id := Identity{Subject: sub, Issuer: is.name, claims: claims}
	if jti, ok := claims["jti"].(string); ok {
		if !Printable(jti) {
			return Identity{}, fmt.Errorf("issuer %s: its jti is not 1 to %d printable ASCII characters without spaces", is.name, maxIdentity)
		}
		id.TokenID = jti
	}
	exp, err := claims.GetExpirationTime()
	if err != nil || exp == nil {
		return Identity{}, fmt.Errorf("issuer %s: it has no exp", is.name)
	}
	if id.Expires = exp.Time; !time.Now().Before(id.Expires) { // the parser grants it the skew
		return Identity{}, fmt.Errorf("issuer %s: it has expired", is.name)
	}
	if iat, err := claims.GetIssuedAt(); err == nil && iat != nil {
		id.Issued = iat.Time
	}
	for _, c := range id.values(is.config.ClientClaim) {
		if Printable(c) {
			id.Clients = append(id.Clients, c)
		}
	}
	return id, nil
}

// plain is an error of the parser in words for a log, without what the token says.
func plain(err error) error {
	for _, r := range []struct {
		is   error
		text string
	}{
		{errUnknownKey, "it names a key that this issuer does not have"},
		{jwt.ErrTokenMalformed, "it is not a JWT"},
		{jwt.ErrTokenSignatureInvalid, "its signature, or its algorithm, is not this issuer's"},
		{jwt.ErrTokenExpired, "it has expired"},
		{jwt.ErrTokenNotValidYet, "it is not valid yet"},
		{jwt.ErrTokenUsedBeforeIssued, "it was issued in the future"},
		{jwt.ErrTokenInvalidAudience, "it is for another audience"},
		{jwt.ErrTokenRequiredClaimMissing, "it lacks exp, aud or iss"},
		{jwt.ErrTokenUnverifiable, "there is no key to verify it with"},
	} {
		if errors.Is(err, r.is) {
			return errors.New(r.text)
		}
	}
	return errors.New("it is not valid")
}

var errUnknownKey = errors.New("unknown key")

// find picks the keys that may have signed a token: those of its kid, or all if it names none, of this issuer only. A kid is compared, and
// used for nothing else.
func (k *keys) find(ctx context.Context) jwt.Keyfunc {
	return func(t *jwt.Token) (any, error) {
		if _, critical := t.Header["crit"]; critical { // RFC 7515, 4.1.11: what is not understood must be refused
			return nil, errors.New("it has extensions")
		}
		key, err := k.named(ctx, t)
		if errors.Is(err, jwkset.ErrKeyNotFound) && k.refresh(ctx) {
			key, err = k.named(ctx, t)
		}
		if errors.Is(err, jwkset.ErrKeyNotFound) {
			return nil, errUnknownKey
		}
		return key, err
	}
}
