package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	channelzv1 "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/runnelhq/runnel/internal/admin"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/certs"
	"github.com/runnelhq/runnel/internal/grpcapi"
	"github.com/runnelhq/runnel/internal/limit"
)

// withDefaults checks what can be checked without reading files.
func (t TLS) withDefaults() (TLS, error) {
	set(&t.Identity, "cn")
	set(&t.MinVersion, "1.2")
	if t.ClientCA != "" {
		set(&t.ClientAuth, "required")
	}
	switch {
	case (t.Cert == "") != (t.Key == ""):
		return t, errors.New("tls: cert and key go together; one is missing")
	case t.ClientCA != "" && t.Cert == "":
		return t, errors.New("tls: client_ca needs the server's cert and key too")
	case t.ClientAuth != "" && t.ClientCA == "":
		return t, errors.New("tls: client_auth needs client_ca, which says whose certificates are good")
	case t.ClientAuth != "" && t.ClientAuth != "required" && t.ClientAuth != "optional":
		return t, fmt.Errorf("tls: client_auth %q is not one of required, optional", t.ClientAuth)
	case t.Identity != "uri" && t.Identity != "dns" && t.Identity != "cn":
		return t, fmt.Errorf("tls: identity %q is not one of uri, dns, cn", t.Identity)
	case t.MinVersion != "1.2" && t.MinVersion != "1.3":
		return t, fmt.Errorf("tls: min_version %q is not one of 1.2, 1.3", t.MinVersion)
	}
	return t, nil
}

func (t *TLS) files() certs.Files {
	f := certs.Files{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA, MinVersion: tls.VersionTLS12}
	if t.MinVersion == "1.3" {
		f.MinVersion = tls.VersionTLS13
	}
	switch t.ClientAuth {
	case "required":
		f.ClientAuth = tls.RequireAndVerifyClientCert
	case "optional":
		f.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return f
}

func (r *Role) role() auth.Role {
	role := auth.Role{
		Claims: r.Claims, Subjects: r.Subjects, Certificates: r.Certificates, Issuers: r.Issuers,
		Authenticated: r.Authenticated, Anonymous: r.Anonymous,
	}
	role.Set(auth.Publish, r.Publish, r.DenyPublish)
	role.Set(auth.Subscribe, r.Subscribe, r.DenySubscribe)
	role.Set(auth.History, r.History, r.DenyHistory)
	role.Set(auth.Admin, r.Admin, r.DenyAdmin)
	return role
}

// Authority says who clients are and what they may do, as configured.
type Authority struct {
	verifier *auth.Verifier
	policy   *auth.Policy
}

// Authority checks issuers and roles, and reads key files. Errors are one line that says where, and what to do.
func (c *Config) Authority() (*Authority, error) {
	a := &Authority{}
	if !c.authenticates() {
		return a, nil
	}
	issuers := map[string]auth.Issuer{}
	for name, is := range c.Issuers {
		issuers[name] = auth.Issuer(is)
	}
	roles := map[string]auth.Role{}
	for name, r := range c.Roles {
		roles[name] = r.role()
		for _, is := range r.Issuers {
			if _, ok := issuers[is]; !ok {
				return nil, fmt.Errorf("role %s: there is no issuer %s", name, is)
			}
		}
	}
	var err error
	if len(issuers) > 0 {
		if a.verifier, err = auth.NewVerifier(issuers); err != nil {
			return nil, err
		}
	}
	if a.policy, err = auth.NewPolicy(roles); err != nil {
		return nil, err
	}
	return a, c.consistent(a.policy)
}

// Check checks a role by itself.
func (r Role) Check() error {
	_, err := auth.NewPolicy(map[string]auth.Role{"": r.role()})
	return unnamed(err, "role : ")
}

// Check checks an issuer by itself, and reads its key files.
func (i Issuer) Check() error {
	_, err := auth.NewVerifier(map[string]auth.Issuer{"": auth.Issuer(i)})
	return unnamed(err, "issuer : ")
}

// unnamed is err without the name that the caller knows better.
func unnamed(err error, prefix string) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.TrimPrefix(err.Error(), prefix))
}

// CheckFiles reads the files of certificates, keys and credentials, and checks that they, issuers and roles go together. It starts nothing.
func (c *Config) CheckFiles() error {
	if c.Engine == OnNATS {
		if err := c.NATS.checkFiles(); err != nil {
			return err
		}
	}
	_, err := newSecurity(c)
	return err
}

// consistent refuses roles that can never act as they say.
func (c *Config) consistent(p *auth.Policy) error {
	if len(c.Roles) == 0 {
		return errors.New("there are no roles, so nobody could do anything; add some, or remove issuers and client_ca")
	}
	tokens, certificates := p.Needs()
	switch {
	case len(tokens) > 0 && len(c.Issuers) == 0:
		return fmt.Errorf("role %s: it is given by tokens, and there are no issuers of tokens", tokens[0])
	case len(certificates) > 0 && c.TLS.ClientCA == "":
		return fmt.Errorf("role %s: it is given by certificates, and there is no tls.client_ca to check them", certificates[0])
	}
	if len(c.Issuers) > 1 {
		for _, name := range tokens {
			if len(c.Roles[name].Issuers) == 0 {
				return fmt.Errorf("role %s: there are several issuers, and each could give this role; name those that may in its issuers (%s)",
					name, strings.Join(slices.Sorted(maps.Keys(c.Issuers)), ", "))
			}
		}
	}
	return nil
}

// Verify says who a token names, and what it allows, for people. The error holds the exact reason why it is not good.
func (a *Authority) Verify(ctx context.Context, token string) (*Rights, error) {
	if a.verifier == nil {
		return nil, errors.New("no issuers are configured, so there are no tokens")
	}
	id, err := a.verifier.Verify(ctx, token)
	if err != nil {
		return nil, err
	}
	access := a.policy.Access(id)
	r := &Rights{Subject: id.Subject, Clients: id.Clients, Issuer: id.Issuer, TokenID: id.TokenID, Expires: id.Expires, Roles: access.Roles}
	for v, grant := range map[auth.Verb]*Grant{auth.Publish: &r.Publish, auth.Subscribe: &r.Subscribe, auth.History: &r.History, auth.Admin: &r.Admin} {
		grant.Allow, grant.Deny = access.Grants(v)
	}
	return r, nil
}

// security is what a running server keeps of it.
type security struct {
	certs       *certs.Store // nil: no TLS
	authority   *Authority
	revocations *auth.Revocations
	limiter     *limit.Limiter
	hit         func(limit string)
	audit       *audit.Log
	auditFile   *os.File                      // nil: none
	guard       atomic.Pointer[grpcapi.Guard] // nil before open
	gate        *grpcapi.Gate
}

func newSecurity(cfg *Config) (*security, error) {
	s := &security{}
	var err error
	if cfg.TLS.Cert != "" {
		if s.certs, err = certs.New(cfg.TLS.files()); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
	}
	if s.authority, err = cfg.Authority(); err != nil {
		return nil, err
	}
	return s, nil
}

// open opens what it needs to know who was revoked, and to write the audit log. What is refused is counted in m.
func (s *security) open(cfg *Config, m *admin.Metrics, revocations func() (*auth.Revocations, error)) (err error) {
	s.hit = m.Limited
	s.limiter = limit.New(s.limits(cfg))
	switch cfg.Audit {
	case "off":
	case "log":
		s.audit = audit.New(cfg.Logger)
	default:
		if s.auditFile, err = os.OpenFile(cfg.Audit, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		s.audit = audit.New(slog.New(slog.NewJSONHandler(s.auditFile, nil)))
	}
	if s.authority.policy != nil {
		if s.revocations, err = revocations(); err != nil {
			return errors.Join(err, s.close())
		}
	}
	guard := grpcapi.GuardConfig{
		Policy: s.authority.policy, Verifier: s.authority.verifier, Revocations: s.revocations, Limiter: s.limiter, Audit: s.audit,
		Open: []string{healthv1.Health_ServiceDesc.ServiceName}, Operators: []string{channelzv1.Channelz_ServiceDesc.ServiceName}, Refused: m.Refused,
	}
	if cfg.TLS.ClientCA != "" {
		guard.Kind = auth.Kind(cfg.TLS.Identity)
	}
	s.guard.Store(grpcapi.NewGuard(guard))
	s.gate = grpcapi.NewGate(s.credentials(), grpcapi.GateConfig{
		Most: cfg.Limits.MaxConnections, PerAddress: cfg.Limits.MaxConnectionsPerAddress, Audit: s.audit, Refused: m.Refused,
	})
	return nil
}

func (s *security) close() error {
	if s.auditFile == nil {
		return nil
	}
	return s.auditFile.Close()
}

func (s *security) credentials() credentials.TransportCredentials {
	if s.certs == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(s.certs.Config())
}

// run keeps certificates and keys up to date until ctx ends.
func (s *security) run(ctx context.Context, logger *slog.Logger) {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { s.gate.Run(ctx) })
	if s.authority.verifier != nil {
		group.Go(func() {
			s.authority.verifier.Run(ctx, func(issuer string, err error) {
				logger.Warn("the keys of an issuer were not renewed; those that are there stay in force", "issuer", issuer, "err", err)
			})
		})
	}
	if s.certs != nil {
		group.Go(func() {
			s.certs.Run(ctx, func(err error) {
				if err != nil {
					logger.Error("certificates were not renewed; those that are there stay in force", "err", err)
					return
				}
				logger.Info("certificates were renewed", "expires", s.certs.Expires())
			})
		})
	}
}

func (s *security) limits(c *Config) limit.Config {
	l := &c.Limits
	cfg := limit.Config{
		Hit:        s.hit,
		Server:     limit.Limits{Events: l.ServerPublishRate, Bytes: l.ServerPublishBytes, Sessions: l.ServerSessions, Subscriptions: l.ServerSubscriptions},
		Client:     limit.Limits{Events: l.ClientPublishRate, Bytes: l.ClientPublishBytes, Sessions: l.ClientSessions, Subscriptions: l.ClientSubscriptions},
		Subject:    limit.Limits{Events: l.SubjectPublishRate, Bytes: l.SubjectPublishBytes, Sessions: l.SubjectSessions, Subscriptions: l.SubjectSubscriptions},
		Namespace:  c.Defaults.limits(),
		Namespaces: map[string]limit.Limits{},
		Event:      int64(l.MaxPayloadBytes + l.MaxHeadersBytes + requestExtra),
	}
	for name, n := range c.Namespaces {
		cfg.Namespaces[name] = n.limits()
	}
	return cfg
}

func (n *Namespace) limits() limit.Limits {
	return limit.Limits{Events: n.PublishRate, Bytes: n.PublishBytes, Subscriptions: n.Subscriptions}
}
