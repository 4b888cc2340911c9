package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/config"
	"github.com/runnelhq/runnel/server"
)

// minting is what a token is made of.
type minting struct {
	path     string
	issuer   string
	subject  string
	claims   []string
	lifetime time.Duration
	id       string
	key      string
	json     bool
}

func (a *app) tokenCommand() *cobra.Command {
	var m minting
	c := &cobra.Command{
		Use:   "token",
		Short: "Make a development token, and say what it allows",
		Long: "Make a token that a server with this configuration takes, and print it on stdout; what it allows goes to stderr. It is signed\n" +
			"with the secret of an issuer whose algorithm is HS256, or with a private key given by --signing-key. For development and\n" +
			"tests: in production an identity provider makes tokens.\n\n" +
			"A claim that is given several times is a list.",
		Example: "  runnel token --subject alice\n  RUNNEL_TOKEN=$(runnel token --subject alice --claim groups=traders --ttl 8h) runnel sub 'quotes.>'\n" +
			"  runnel token explain - < token.txt",
		Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.mint(c.Context(), &m) },
	}
	c.PersistentFlags().StringVar(&m.path, "config", "", "configuration of the server (default "+config.DefaultFile+")")
	c.PersistentFlags().BoolVar(&m.json, "json", false, "print what the token allows as JSON")
	c.Flags().StringVar(&m.issuer, "issuer", "", "name of the issuer in the configuration (default the only one with HS256)")
	c.Flags().StringVar(&m.subject, "subject", "developer", "whom the token names")
	c.Flags().StringArrayVar(&m.claims, "claim", nil, "NAME=VALUE, may be repeated")
	c.Flags().DurationVar(&m.lifetime, "ttl", time.Hour, "how long it is valid")
	c.Flags().StringVar(&m.id, "id", "", "its jti (default random)")
	c.Flags().StringVar(&m.key, "signing-key", "", "file with the private key (PEM), for issuers without a secret")
	c.AddCommand(a.tokenExplain(&m))
	return c
}

func (a *app) tokenExplain(m *minting) *cobra.Command {
	return &cobra.Command{
		Use:   "explain [TOKEN|-]",
		Short: "Say what a token allows, or why it is refused (default RUNNEL_TOKEN, - for stdin)",
		Args:  args(0, 1, "at most one token"),
		RunE: func(c *cobra.Command, args []string) error {
			token := a.token
			if len(args) == 1 {
				token = args[0]
			}
			if token == "-" {
				b, err := io.ReadAll(io.LimitReader(a.in, 1<<20))
				if err != nil {
					return err
				}
				token = string(b)
			}
			if token = strings.TrimSpace(token); token == "" {
				return usagef("there is no token; give one as an argument, on stdin with -, or in RUNNEL_TOKEN")
			}
			authority, _, err := a.authority(m.path)
			if err != nil {
				return err
			}
			r, err := authority.Verify(c.Context(), token)
			if err != nil {
				return fmt.Errorf("a server with this configuration refuses the token: %w", err)
			}
			return a.showRights(a.out, r, m.json)
		},
	}
}

// authority reads the configuration.
func (a *app) authority(path string) (*server.Authority, *server.Config, error) {
	conf, problems := config.Load(cmp.Or(path, config.DefaultFile), nil, os.Environ())
	if problems != nil {
		return nil, nil, problems[0]
	}
	if len(conf.Server.Issuers) == 0 {
		return nil, nil, fmt.Errorf("%s has no issuers of tokens; \"runnel config init --tls\" writes a configuration that has one", cmp.Or(path, config.DefaultFile))
	}
	authority, err := conf.Server.Authority()
	return authority, &conf.Server, err
}

func (a *app) mint(ctx context.Context, m *minting) error {
	if m.lifetime <= 0 {
		return usagef("--ttl must be more than 0")
	}
	authority, conf, err := a.authority(m.path)
	if err != nil {
		return err
	}
	issuer, err := m.pick(conf)
	if err != nil {
		return err
	}
	token, err := m.sign(issuer)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.out, token); err != nil {
		return err
	}
	r, err := authority.Verify(ctx, token)
	if err != nil {
		return fmt.Errorf("a server with this configuration would refuse the token: %w", err)
	}
	return a.showRights(a.err, r, m.json)
}

// pick is the issuer to sign as.
func (m *minting) pick(conf *server.Config) (*server.Issuer, error) {
	var can []string
	for name, is := range conf.Issuers {
		if slices.Contains(is.Algorithms, "HS256") || m.key != "" {
			can = append(can, name)
		}
	}
	slices.Sort(can)
	name := m.issuer
	switch all := strings.Join(slices.Sorted(maps.Keys(conf.Issuers)), ", "); {
	case name == "" && len(can) == 1:
		name = can[0]
	case name == "" && len(can) == 0:
		return nil, usagef("no issuer has a secret to sign with; give the private key of one of %s with --signing-key", all)
	case name == "":
		return nil, usagef("there are several issuers; choose with --issuer: %s", strings.Join(can, ", "))
	}
	is, ok := conf.Issuers[name]
	if !ok {
		return nil, usagef("there is no issuer %q in the configuration; there are %s", name, strings.Join(slices.Sorted(maps.Keys(conf.Issuers)), ", "))
	}
	return &is, nil
}

func (m *minting) sign(is *server.Issuer) (string, error) {
	now := time.Now()
	claims := jwt.MapClaims{
		"iss": is.Issuer, "aud": is.Audience[0], "sub": m.subject, "jti": cmp.Or(m.id, rand.Text()[:16]),
		"iat": now.Unix(), "exp": now.Add(m.lifetime).Unix(),
	}
	for _, c := range m.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok || name == "" {
			return "", usagef("--claim %q is not NAME=VALUE", c)
		}
		switch old := claims[name].(type) {
		case []string:
			claims[name] = append(old, value)
		case nil:
			claims[name] = value
		case string:
			if name == "iss" || name == "aud" || name == "sub" || name == "jti" {
				claims[name] = value // to see what happens
			} else {
				claims[name] = []string{old, value}
			}
		default:
			return "", usagef("--claim %s: use --ttl", name)
		}
	}
	method, key, err := m.signer(is)
	if err != nil {
		return "", err
	}
	token, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		return "", errors.New("the key does not fit the issuer's algorithm " + method.Alg())
	}
	return token, nil
}

// signer is the issuer's algorithm and key: its secret, or the private key that was given.
func (m *minting) signer(is *server.Issuer) (jwt.SigningMethod, any, error) {
	path := m.key
	if path == "" {
		if is.Algorithms[0] != "HS256" {
			return nil, nil, usagef("this issuer has no secret to sign with; give its private key with --signing-key")
		}
		path = is.Keys[0]
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if is.Algorithms[0] == "HS256" {
		if strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
			return nil, nil, fmt.Errorf("%s is a JWK; to sign, give the secret as it is with --signing-key", path)
		}
		return jwt.SigningMethodHS256, []byte(strings.TrimRight(string(b), "\r\n")), nil
	}
	for _, alg := range is.Algorithms {
		var key any
		switch alg {
		case "RS256", "PS256":
			key, err = jwt.ParseRSAPrivateKeyFromPEM(b)
		case "ES256":
			key, err = jwt.ParseECPrivateKeyFromPEM(b)
		case "EdDSA":
			key, err = jwt.ParseEdPrivateKeyFromPEM(b)
		}
		if err == nil {
			return jwt.GetSigningMethod(alg), key, nil
		}
	}
	return nil, nil, fmt.Errorf("%s holds no private key (PEM) for %s", path, strings.Join(is.Algorithms, ", "))
}

// showRights prints what a token allows.
func (a *app) showRights(w io.Writer, r *server.Rights, asJSON bool) error {
	if asJSON {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	}
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	row("subject", "%s", r.Subject)
	if len(r.Clients) > 0 {
		row("client ids", "%s", strings.Join(r.Clients, " "))
	}
	row("issuer", "%s", r.Issuer)
	row("expires", "%s, in %s", r.Expires.Format(time.RFC3339), time.Until(r.Expires).Round(time.Second))
	row("roles", "%s", cmp.Or(strings.Join(r.Roles, " "), "none"))
	for _, g := range []struct {
		verb  string
		grant server.Grant
	}{{"publish", r.Publish}, {"subscribe", r.Subscribe}, {"history", r.History}, {"admin", r.Admin}} {
		text := cmp.Or(strings.Join(g.grant.Allow, " "), "nothing")
		if len(g.grant.Deny) > 0 {
			text += ", but not " + strings.Join(g.grant.Deny, " ")
		}
		row(g.verb, "%s", text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
