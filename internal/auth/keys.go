package auth

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

const (
	maxKeyFile   = 1 << 20
	maxKeys      = 100
	minSecret    = 32 // bytes; RFC 7518, 3.2
	minRSA       = 2048
	fetchTimeout = 5 * time.Second
	fetchEvery   = 5 * time.Minute
	// fetchForUnknown is how often an unknown kid may cause a fetch: anybody can make one up.
	fetchForUnknown = 10 * time.Second
	// fetchWait is how long a token with an unknown kid waits for that fetch.
	fetchWait = 3 * time.Second
	// fetchAgain and fetchMost bound the time between attempts while fetching fails.
	fetchAgain = time.Second
	fetchMost  = time.Minute
)

// keys are those of one issuer. What was fetched last stays until a later fetch brings other keys.
type keys struct {
	fixed   []jwkset.JWK // of files
	url     string
	client  *http.Client
	unknown *rate.Limiter
	asks    chan chan<- struct{} // to fetch now; closed when done

	all    *jwkset.MemoryJWKSet
	byName keyfunc.Keyfunc
}

func newKeys(config Issuer) (*keys, error) {
	k := &keys{
		url: config.JWKS, all: jwkset.NewMemoryStorage(), asks: make(chan chan<- struct{}),
		unknown: rate.NewLimiter(rate.Every(fetchForUnknown), 1),
	}
	for _, path := range config.Keys {
		list, err := readKeys(path, config.Algorithms[0] == "HS256")
		if err != nil {
			return nil, fmt.Errorf("key file %s: %w", path, err)
		}
		k.fixed = append(k.fixed, list...)
	}
	if k.url != "" {
		if err := checkURL(k.url); err != nil {
			return nil, fmt.Errorf("jwks %q: %w", k.url, err)
		}
		k.client = &http.Client{
			Timeout:       fetchTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects, which is not followed") },
		}
	}
	var err error
	if k.byName, err = keyfunc.New(keyfunc.Options{Storage: k.all}); err != nil {
		return nil, err
	}
	return k, k.all.KeyReplaceAll(context.Background(), slices.Clone(k.fixed))
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("it is not a URL of the form https://HOST/PATH")
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return errors.New("keys are fetched over https only (http is allowed on loopback)")
	}
	return nil
}

// named returns the keys that t may be signed with.
func (k *keys) named(ctx context.Context, t *jwt.Token) (any, error) {
	key, err := k.byName.KeyfuncCtx(ctx)(t)
	switch set, all := key.(jwt.VerificationKeySet); {
	case all && len(set.Keys) == 0:
		return nil, jwkset.ErrKeyNotFound
	case !errors.Is(err, jwkset.ErrKeyNotFound):
		return key, err
	}
	// Keys from PEM files have no kid, and may be meant.
	list, readErr := k.all.KeyReadAll(ctx)
	if readErr != nil {
		return nil, readErr
	}
	var nameless jwt.VerificationKeySet
	for _, j := range list {
		if j.Marshal().KID == "" {
			nameless.Keys = append(nameless.Keys, j.Key())
		}
	}
	if len(nameless.Keys) == 0 {
		return nil, err
	}
	return nameless, nil
}

// refresh fetches the keys because one is unknown, unless that was done a moment ago. It reports whether it did.
func (k *keys) refresh(ctx context.Context) bool {
	if k.url == "" || !k.unknown.Allow() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, fetchWait)
	defer cancel()
	done := make(chan struct{})
	select {
	case k.asks <- done:
	case <-ctx.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// run fetches the keys of all issuers that have a URL, until ctx ends.
func run(ctx context.Context, issuers []*issuer, logf func(issuer string, err error)) {
	var group sync.WaitGroup
	for _, is := range issuers {
		if is.keys.url != "" {
			group.Go(func() { is.keys.run(ctx, func(err error) { logf(is.name, err) }) })
		}
	}
	group.Wait()
}

func (k *keys) run(ctx context.Context, failed func(error)) {
	again := fetchAgain
	var asked chan<- struct{}
	for {
		err := k.fetch(ctx)
		if asked != nil {
			close(asked)
			asked = nil
		}
		if ctx.Err() != nil {
			return
		}
		wait := fetchEvery
		if err != nil {
			failed(err)
			wait, again = again, min(2*again, fetchMost)
		} else {
			again = fetchAgain
		}
		timer := time.NewTimer(wait - rand.N(wait/10+1))
		select {
		case <-timer.C:
		case asked = <-k.asks:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// fetch replaces the keys that came from the URL. On any failure those that are there stay.
func (k *keys) fetch(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url, nil)
	if err != nil {
		return err
	}
	res, err := k.client.Do(r)
	if err != nil {
		return fmt.Errorf("keys cannot be fetched: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("keys cannot be fetched: %s answers %s", k.url, res.Status)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxKeyFile+1))
	if err != nil {
		return fmt.Errorf("keys cannot be fetched: %w", err)
	}
	if len(b) > maxKeyFile {
		return fmt.Errorf("keys cannot be fetched: %s answers with more than %d bytes", k.url, maxKeyFile)
	}
	list, err := parseJSON(b, false)
	if err != nil {
		return fmt.Errorf("keys from %s: %w", k.url, err)
	}
	return k.all.KeyReplaceAll(ctx, append(list, k.fixed...))
}

func readKeys(path string, secret bool) ([]jwkset.JWK, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	switch text := strings.TrimSpace(string(b)); {
	case err != nil:
		return nil, cause(err)
	case len(b) > maxKeyFile:
		return nil, fmt.Errorf("it has more than %d bytes", maxKeyFile)
	case strings.HasPrefix(text, "{"):
		return parseJSON(b, secret)
	case strings.Contains(text, "-----BEGIN "):
		if secret {
			return nil, errors.New("it is PEM, and HS256 takes a secret")
		}
		return parsePEM(b)
	case !secret:
		return nil, errors.New("it is neither PEM nor a JWK")
	}
	return one([]byte(strings.TrimRight(string(b), "\r\n")))
}

// cause is an error of the file system without the path, which the caller names.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// parseJSON reads a JWK or a JWKS. Keys that cannot be used are passed over, as long as one can.
func parseJSON(b []byte, secret bool) (list []jwkset.JWK, err error) {
	var set struct {
		Keys []jwkset.JWKMarshal `json:"keys"`
		KTY  string              `json:"kty"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("it is not a JWK or JWKS")
	}
	if set.KTY != "" {
		var single jwkset.JWKMarshal
		if err := json.Unmarshal(b, &single); err != nil {
			return nil, errors.New("it is not a JWK")
		}
		set.Keys = []jwkset.JWKMarshal{single}
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it has more than %d keys", maxKeys)
	}
	why := errors.New("it holds no key that can be used")
	for _, m := range set.Keys {
		if m.USE != "" && m.USE != jwkset.UseSig || (m.KTY == jwkset.KtyOct) != secret {
			continue
		}
		j, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		if err != nil {
			why = errors.New("its key is malformed, or of a kind that cannot be used")
			continue
		}
		if err := strong(j.Key()); err != nil {
			why = err
			continue
		}
		list = append(list, j)
	}
	if len(list) == 0 {
		return nil, why
	}
	return list, nil
}

// parsePEM reads public keys, and certificates for theirs. A private key is refused: a server that only verifies must not have it.
func parsePEM(b []byte) (list []jwkset.JWK, err error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		var key any
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = c.PublicKey
			}
		default:
			return nil, fmt.Errorf("it holds a %s; to verify tokens, give the public key only", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("its %s is malformed", block.Type)
		}
		more, err := one(key)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	if len(list) == 0 {
		return nil, errors.New("it holds no key")
	}
	return list, nil
}

func one(key any) ([]jwkset.JWK, error) {
	if err := strong(key); err != nil {
		return nil, err
	}
	j, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{Marshal: jwkset.JWKMarshalOptions{Private: true}})
	if err != nil {
		return nil, errors.New("its key is of a kind that cannot be used")
	}
	return []jwkset.JWK{j}, nil
}
