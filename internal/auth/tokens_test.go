package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

var (
	rsaKey   = must(rsa.GenerateKey(rand.Reader, 2048))
	rsaOther = must(rsa.GenerateKey(rand.Reader, 2048))
	ecKey    = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	edKey    = func() ed25519.PrivateKey { _, k, err := ed25519.GenerateKey(rand.Reader); return must(k, err) }()
	secret   = []byte("a secret of more than thirty-two bytes")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func file(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func publicPEM(key crypto.Signer) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(key.Public()))})
}

// claims are those of a good token, with changes; a nil value removes.
func claims(changes jwt.MapClaims) jwt.MapClaims {
	now := time.Now()
	c := jwt.MapClaims{"iss": "https://id", "aud": "runnel", "sub": "alice", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "jti": "t1"}
	maps.Copy(c, changes)
	for k, v := range c {
		if v == nil {
			delete(c, k)
		}
	}
	return c
}

func signed(method jwt.SigningMethod, key any, c jwt.MapClaims, header map[string]any) string {
	t := jwt.NewWithClaims(method, c)
	maps.Copy(t.Header, header)
	return must(t.SignedString(key))
}

func verifier(t *testing.T, issuers map[string]Issuer) *Verifier {
	t.Helper()
	v, err := NewVerifier(issuers)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// An issuer with every asymmetric algorithm, and one with a secret.
func issuers(t *testing.T) map[string]Issuer {
	all := append(append(publicPEM(rsaKey), publicPEM(ecKey)...), publicPEM(edKey)...)
	return map[string]Issuer{
		"main": {Issuer: "https://id", Audience: []string{"runnel", "other"}, Algorithms: []string{"RS256", "PS256", "ES256", "EdDSA"}, Keys: []string{file(t, "all.pem", all)}},
		"dev":  {Issuer: "dev", Audience: []string{"runnel"}, Algorithms: []string{"HS256"}, Keys: []string{file(t, "secret", append(secret, '\n'))}, SubjectPrefix: "dev:"},
	}
}

func TestGoodTokens(t *testing.T) {
	v := verifier(t, issuers(t))
	for name, token := range map[string]string{
		"RS256":               signed(jwt.SigningMethodRS256, rsaKey, claims(nil), nil),
		"PS256":               signed(jwt.SigningMethodPS256, rsaKey, claims(nil), nil),
		"ES256":               signed(jwt.SigningMethodES256, ecKey, claims(nil), nil),
		"EdDSA":               signed(jwt.SigningMethodEdDSA, edKey, claims(nil), nil),
		"a kid of no file":    signed(jwt.SigningMethodES256, ecKey, claims(nil), map[string]any{"kid": "any"}),
		"several audiences":   signed(jwt.SigningMethodES256, ecKey, claims(jwt.MapClaims{"aud": []string{"x", "other"}}), nil),
		"issued a moment off": signed(jwt.SigningMethodES256, ecKey, claims(jwt.MapClaims{"iat": time.Now().Add(20 * time.Second).Unix(), "nbf": time.Now().Add(20 * time.Second).Unix()}), nil),
		"without iat and jti": signed(jwt.SigningMethodES256, ecKey, claims(jwt.MapClaims{"iat": nil, "jti": nil}), nil),
	} {
		id, err := v.Verify(t.Context(), token)
		if err != nil || id.Subject != "alice" || id.Issuer != "main" || time.Until(id.Expires) < 59*time.Minute {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	id, err := v.Verify(t.Context(), signed(jwt.SigningMethodHS256, secret, claims(jwt.MapClaims{"iss": "dev", "client_id": []string{"phone", "a b", "pad"}}), nil))
	if err != nil || id.Subject != "dev:alice" || id.TokenID != "t1" || strings.Join(id.Clients, " ") != "phone pad" || id.Issued.IsZero() {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestBadTokens(t *testing.T) {
	v := verifier(t, issuers(t))
	es := func(changes jwt.MapClaims) string { return signed(jwt.SigningMethodES256, ecKey, claims(changes), nil) }
	good := es(nil)
	parts := strings.Split(good, ".")
	hour := time.Hour
	for name, c := range map[string]struct{ token, why string }{
		"empty":                    {"", "not a JWT"},
		"not a token":              {"hello", "not a JWT"},
		"a megabyte of dots":       {strings.Repeat(".", 1<<20), "at most 8192 are looked at"},
		"many dots":                {strings.Repeat(".", 8000), "not a JWT"},
		"expired":                  {es(jwt.MapClaims{"exp": time.Now().Add(-hour).Unix()}), "it has expired"},
		"expired a second ago":     {es(jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}), "it has expired"},
		"not yet valid":            {es(jwt.MapClaims{"nbf": time.Now().Add(hour).Unix()}), "not valid yet"},
		"issued in the future":     {es(jwt.MapClaims{"iat": time.Now().Add(hour).Unix()}), "issued in the future"},
		"no exp":                   {es(jwt.MapClaims{"exp": nil}), "lacks exp, aud or iss"},
		"exp is a text":            {es(jwt.MapClaims{"exp": "tomorrow"}), "it is not valid"},
		"no aud":                   {es(jwt.MapClaims{"aud": nil}), "lacks exp, aud or iss"},
		"another audience":         {es(jwt.MapClaims{"aud": "Runnel"}), "another audience"},
		"no iss":                   {es(jwt.MapClaims{"iss": nil}), "issuer is not configured"},
		"another issuer":           {es(jwt.MapClaims{"iss": "https://id/"}), "issuer is not configured"},
		"iss is a list":            {es(jwt.MapClaims{"iss": []string{"https://id"}}), "issuer is not configured"},
		"no sub":                   {es(jwt.MapClaims{"sub": nil}), "its subject is not"},
		"sub with a line":          {es(jwt.MapClaims{"sub": "a\nlevel=ERROR"}), "its subject is not"},
		"sub too long":             {es(jwt.MapClaims{"sub": strings.Repeat("x", 129)}), "its subject is not"},
		"jti with a space":         {es(jwt.MapClaims{"jti": "a b"}), "its jti is not"},
		"unknown key":              {signed(jwt.SigningMethodRS256, rsaOther, claims(nil), nil), "its signature"},
		"alg none":                 {signed(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims(nil), nil), "its signature"},
		"HMAC with a public key":   {signed(jwt.SigningMethodHS256, publicPEM(rsaKey), claims(nil), nil), "its signature"},
		"HMAC with a public DER":   {signed(jwt.SigningMethodHS256, must(x509.MarshalPKIXPublicKey(ecKey.Public())), claims(nil), nil), "its signature"},
		"RSA where HMAC is":        {signed(jwt.SigningMethodRS256, rsaKey, claims(jwt.MapClaims{"iss": "dev"}), nil), "its signature"},
		"another issuer's key":     {signed(jwt.SigningMethodHS256, secret, claims(nil), nil), "its signature"},
		"main's key, dev's name":   {signed(jwt.SigningMethodES256, ecKey, claims(jwt.MapClaims{"iss": "dev"}), nil), "its signature"},
		"RS512":                    {signed(jwt.SigningMethodRS512, rsaKey, claims(nil), nil), "its signature"},
		"signature of another":     {parts[0] + "." + parts[1] + "." + strings.Split(es(jwt.MapClaims{"sub": "bob"}), ".")[2], "its signature"},
		"no signature":             {parts[0] + "." + parts[1] + ".", "its signature"},
		"claims of another":        {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"https://id","sub":"root"}`)) + "." + parts[2], "its signature"},
		"four parts":               {good + ".x", "not a JWT"},
		"padded":                   {parts[0] + "." + parts[1] + "." + parts[2] + "==", "not a JWT"},
		"critical extension":       {signed(jwt.SigningMethodES256, ecKey, claims(nil), map[string]any{"crit": []string{"exp2"}}), "no key to verify"},
		"kid is a number":          {signed(jwt.SigningMethodES256, ecKey, claims(nil), map[string]any{"kid": 7}), "no key to verify"},
		"embedded key is not used": {signed(jwt.SigningMethodRS256, rsaOther, claims(nil), map[string]any{"jwk": map[string]any{"kty": "RSA"}, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}), "its signature"},
	} {
		id, err := v.Verify(t.Context(), c.token)
		if !errors.Is(err, ErrBadToken) || !strings.Contains(err.Error(), c.why) || id.Subject != "" {
			t.Errorf("%s: %+v, %v; want %q", name, id, err, c.why)
		}
		if err != nil && len(c.token) > 8 && strings.Contains(err.Error(), c.token[:8]) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

func TestIssuersThatCannotBe(t *testing.T) {
	base := issuers(t)["main"]
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(ecKey))})
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for _, c := range []struct {
		change func(*Issuer)
		want   string
	}{
		{func(i *Issuer) { i.Issuer = "" }, "issuer is missing"},
		{func(i *Issuer) { i.Audience = nil }, "audience is missing"},
		{func(i *Issuer) { i.Algorithms = nil }, "algorithms are missing"},
		{func(i *Issuer) { i.Algorithms = []string{"none"} }, `algorithm "none" is not one of HS256, RS256`},
		{func(i *Issuer) { i.Algorithms = []string{"HS256", "RS256"} }, "cannot stand beside other algorithms"},
		{func(i *Issuer) { i.Keys = nil }, "there are no keys"},
		{func(i *Issuer) { i.Keys = []string{"nowhere.pem"} }, "key file nowhere.pem: no such file"},
		{func(i *Issuer) { i.Keys = []string{t.TempDir()} }, "is a directory"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", private)} }, "it holds a PRIVATE KEY; to verify tokens, give the public key only"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", publicPEM(weak))} }, "its RSA key has 1024 bits"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", publicPEM(p384))} }, "its curve is P-384"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", secret)} }, "neither PEM nor a JWK"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", publicPEM(ecKey)[:40])} }, "it holds no key"},
		{func(i *Issuer) { i.Keys = []string{file(t, "k", []byte("{}"))} }, "it holds no key that can be used"},
		{func(i *Issuer) { i.Algorithms = []string{"HS256"} }, "it is PEM, and HS256 takes a secret"},
		{func(i *Issuer) {
			i.Algorithms = []string{"HS256"}
			i.Keys = []string{file(t, "k", []byte("short\n"))}
		}, "its secret has 5 bytes; at least 32"},
		{func(i *Issuer) { i.Algorithms = []string{"HS256"}; i.JWKS = "https://x/y" }, "HS256 has a secret"},
		{func(i *Issuer) { i.JWKS = "http://id.example.com/jwks" }, "over https only"},
		{func(i *Issuer) { i.JWKS = "file:///etc/passwd" }, "not a URL of the form"},
		{func(i *Issuer) { i.JWKS = "https://user:pw@id/jwks" }, "not a URL of the form"},
		{func(i *Issuer) { i.SubjectPrefix = "a b" }, "subject_prefix"},
	} {
		is := base
		c.change(&is)
		if _, err := NewVerifier(map[string]Issuer{"main": is}); err == nil || !strings.HasPrefix(err.Error(), "issuer main: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if _, err := NewVerifier(map[string]Issuer{"a": base, "b": base}); err == nil || !strings.Contains(err.Error(), `issuers a and b have the same iss "https://id"`) {
		t.Error(err)
	}
}

// jwks is an identity provider's keys, which a test changes.
type jwks struct {
	mu      sync.Mutex
	body    string
	status  int
	fetches atomic.Int64
}

func (j *jwks) set(status int, body string) {
	j.mu.Lock()
	j.status, j.body = status, body
	j.mu.Unlock()
}

func (j *jwks) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	j.fetches.Add(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	w.WriteHeader(j.status)
	_, _ = w.Write([]byte(j.body)) // a client that is gone is the test's end
}

func set(keys map[string]crypto.Signer) string {
	var all jwkset.JWKSMarshal
	for kid, key := range keys {
		j := must(jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: kid}}))
		all.Keys = append(all.Keys, j.Marshal())
	}
	return string(must(json.Marshal(all)))
}

// Keys are fetched; one that is new is found at once, but not asked for again and again; and what was fetched last stays in force
// whatever the provider says later.
func TestFetchedKeys(t *testing.T) {
	provider := &jwks{status: http.StatusOK, body: set(map[string]crypto.Signer{"k1": ecKey})}
	web := httptest.NewServer(provider)
	defer web.Close()
	v := verifier(t, map[string]Issuer{"main": {Issuer: "https://id", Audience: []string{"runnel"}, Algorithms: []string{"ES256", "RS256"}, JWKS: web.URL}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { v.Run(ctx, func(string, error) {}) })

	k1 := signed(jwt.SigningMethodES256, ecKey, claims(nil), map[string]any{"kid": "k1"})
	k2 := signed(jwt.SigningMethodRS256, rsaKey, claims(nil), map[string]any{"kid": "k2"})
	if _, err := v.Verify(t.Context(), k1); err != nil { // perhaps before the first fetch
		t.Fatal(err)
	}
	v.issuers[0].keys.unknown.SetBurst(2) // as if time had passed
	v.issuers[0].keys.unknown.SetLimit(1e9)
	provider.set(http.StatusOK, set(map[string]crypto.Signer{"k1": ecKey, "k2": rsaKey}))
	if _, err := v.Verify(t.Context(), k2); err != nil {
		t.Fatalf("a key that is new: %v", err)
	}
	v.issuers[0].keys.unknown.SetBurst(0)
	before := provider.fetches.Load()
	for range 100 {
		if _, err := v.Verify(t.Context(), signed(jwt.SigningMethodES256, ecKey, claims(nil), map[string]any{"kid": "../../etc/passwd"})); err == nil || !strings.Contains(err.Error(), "names a key that this issuer does not have") {
			t.Fatal(err)
		}
	}
	if n := provider.fetches.Load() - before; n != 0 {
		t.Errorf("made-up kids caused %d fetches", n)
	}
	for name, bad := range map[string]struct {
		status int
		body   string
	}{
		"an error":      {http.StatusInternalServerError, set(map[string]crypto.Signer{"k9": ecKey})},
		"no keys":       {http.StatusOK, `{"keys":[]}`},
		"nothing":       {http.StatusOK, ``},
		"a page":        {http.StatusOK, `<html>`},
		"an empty page": {http.StatusOK, `{}`},
		"too much":      {http.StatusOK, strings.Repeat(" ", maxKeyFile+1)},
		"a redirect":    {http.StatusFound, ``},
		"secrets only":  {http.StatusOK, `{"keys":[{"kty":"oct","k":"` + base64.RawURLEncoding.EncodeToString(secret) + `"}]}`},
	} {
		provider.set(bad.status, bad.body)
		if err := v.issuers[0].keys.fetch(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := v.Verify(t.Context(), k2); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	provider.set(http.StatusOK, set(map[string]crypto.Signer{"k2": rsaKey}))
	if err := v.issuers[0].keys.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), k1); err == nil {
		t.Error("a key that the provider has removed is still good")
	}
}

// The same kid at two issuers is two keys.
func TestKidsOfIssuersAreApart(t *testing.T) {
	jwk := func(key crypto.Signer) string {
		return file(t, "jwks", []byte(set(map[string]crypto.Signer{"same": key})))
	}
	v := verifier(t, map[string]Issuer{
		"a": {Issuer: "a", Audience: []string{"runnel"}, Algorithms: []string{"ES256"}, Keys: []string{jwk(ecKey)}},
		"b": {Issuer: "b", Audience: []string{"runnel"}, Algorithms: []string{"RS256"}, Keys: []string{jwk(rsaKey)}},
	})
	kid := map[string]any{"kid": "same"}
	for iss, want := range map[string]bool{"a": true, "b": false} {
		if _, err := v.Verify(t.Context(), signed(jwt.SigningMethodES256, ecKey, claims(jwt.MapClaims{"iss": iss}), kid)); (err == nil) != want {
			t.Errorf("issuer %s: %v", iss, err)
		}
	}
}

// Whatever a client sends as a token is refused without a panic, unless it is one.
func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "k")
	if err := os.WriteFile(path, publicPEM(ecKey), 0o600); err != nil {
		f.Fatal(err)
	}
	v := must(NewVerifier(map[string]Issuer{"main": {Issuer: "https://id", Audience: []string{"runnel"}, Algorithms: []string{"ES256"}, Keys: []string{path}}}))
	good := signed(jwt.SigningMethodES256, ecKey, claims(nil), nil)
	f.Add(good)
	f.Add(strings.Repeat(".", 100))
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, token string) {
		if id, err := v.Verify(context.Background(), token); err == nil && (id.Subject != "alice" || id.Issuer != "main") {
			t.Errorf("%q is taken for %+v", token, id)
		}
	})
}
