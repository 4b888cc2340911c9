package grpcapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/limit"
)

// GuardConfig is what a Guard goes by. A nil Policy means that nobody is authenticated and everybody may do everything.
type GuardConfig struct {
	Policy      *auth.Policy
	Verifier    *auth.Verifier    // nil: tokens are not taken
	Kind        auth.Kind         // the part of a certificate that names its client
	Revocations *auth.Revocations // required with Policy
	Limiter     *limit.Limiter    // nil: no limits
	Audit       *audit.Log        // nil: none
	// Refused, if set, is called for each refusal, with why: one of RefusedReasons.
	Refused func(reason string)
	// Open are the services that anybody may call, and Operators those that only administrators may. All others are for whoever is known, and
	// look further at what he may.
	Open, Operators []string
}

// Guard stands before every call: it proves who calls, and keeps an eye on streams, whose callers may lose their rights meanwhile.
type Guard struct {
	cfg GuardConfig

	mu      sync.Mutex
	policy  *auth.Policy
	streams map[*caller]struct{}
}

// NewGuard returns a Guard. Its interceptors must be the server's.
func NewGuard(cfg GuardConfig) *Guard {
	return &Guard{cfg: cfg, policy: cfg.Policy, streams: map[*caller]struct{}{}}
}

// What ends streams, or refuses calls.
var (
	// errUnauthenticated is all that a client learns; the log has the reason.
	errUnauthenticated = errors.New("not authenticated: a valid token or client certificate is needed")
	errExpired         = errors.New("the token or certificate has expired")
	errClientID        = errors.New("the token or certificate does not allow this client-id")
	errUnguarded       = errors.New("a call came past the guard")
)

// RefusedReasons are the reasons that Refused is called with, by the guard and the gate.
var RefusedReasons = []string{"no_credentials", "bad_token", "client_id", "revoked", "handshake", "connections"}

func (g *Guard) refused(err error) {
	if g.cfg.Refused == nil {
		return
	}
	reason := "bad_token"
	switch {
	case errors.Is(err, auth.ErrNoCredentials):
		reason = "no_credentials"
	case errors.Is(err, auth.ErrRevoked):
		reason = "revoked"
	case errors.Is(err, errClientID):
		reason = "client_id"
	}
	g.cfg.Refused(reason)
}

// caller is who makes a call: proven when it began, and renewed by RefreshToken and new roles.
type caller struct {
	g      *Guard
	client string
	method string
	peer   net.Addr
	conn   *connection
	limits *limit.Client
	access atomic.Pointer[auth.Access] // of nil: authentication is off
	cancel context.CancelCauseFunc     // ends the stream; nil for unary calls

	mu     sync.Mutex
	timer  *time.Timer // until the warning, then until the end; nil: it never ends
	warned bool
	over   bool
	stream *stream // a session's; nil for other calls

	request string // an id of the call, once somebody has asked for it
	asked   sync.Once

	// session is its id, set before anybody else knows the caller.
	session string
}

// address is where the call comes from.
func (c *caller) address() string {
	if c.peer == nil {
		return ""
	}
	return c.peer.String()
}

type callerKey struct{}

// callerOf returns who makes the call. Without a guard there is nobody, and nothing is done.
func callerOf(ctx context.Context) (*caller, error) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return nil, errUnguarded
	}
	return c, nil
}

// who is the caller as the rules see it, at this moment.
func (c *caller) who() broker.Caller {
	return broker.Caller{Client: c.client, Access: c.access.Load(), Limits: c.limits, Origin: c}
}

// Origin implements broker.Origin: what joins the log, traces and what the client was told.
func (c *caller) Origin() (kind, id string) {
	if c.session != "" {
		return "session", c.session
	}
	c.asked.Do(func() { c.request = sessionID() }) // most calls never need one
	return "request", c.request
}

// Unary is an interceptor.
func (g *Guard) Unary(ctx context.Context, r any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	came(ctx)
	if g.open(info.FullMethod) {
		return handler(ctx, r)
	}
	c, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, statusOf(err).Err()
	}
	defer c.limits.Close()
	ctx = context.WithValue(ctx, callerKey{}, c)
	if err := g.operating(ctx, info.FullMethod); err != nil {
		c.denied(err)
		return nil, err
	}
	answer, err := handler(ctx, r)
	c.denied(err)
	return answer, err
}

// guarded is a stream whose context knows its caller, and ends with it.
type guarded struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *guarded) Context() context.Context { return s.ctx }

func (s *guarded) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	came(s.ctx)
	return err
}

// Stream is an interceptor.
func (g *Guard) Stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.IsClientStream { // may begin with silence, which sessions bound themselves
		came(s.Context())
	}
	if g.open(info.FullMethod) {
		return handler(srv, &guarded{s, s.Context()})
	}
	c, err := g.admit(s.Context(), info.FullMethod)
	if err != nil {
		return statusOf(err).Err()
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(s.Context(), callerKey{}, c))
	defer cancel(nil)
	c.cancel = cancel
	if err := g.watch(c); err != nil {
		c.limits.Close()
		return statusOf(err).Err()
	}
	defer g.leave(c)
	if err = g.operating(ctx, info.FullMethod); err == nil {
		err = handler(srv, &guarded{s, ctx})
	}
	c.denied(err)
	return err
}

// denied notes it if err says that the caller may not do what it asked for.
func (c *caller) denied(err error) {
	if as[*broker.ForbiddenError](err) || status.Code(err) == codes.PermissionDenied {
		c.note(audit.Denied, slog.String("reason", status.Convert(err).Message()))
	}
}

func (g *Guard) open(method string) bool { return slices.Contains(g.cfg.Open, serviceOf(method)) }

// operating is the error of a call that only administrators may make.
func (g *Guard) operating(ctx context.Context, method string) error {
	if !slices.Contains(g.cfg.Operators, serviceOf(method)) {
		return nil
	}
	_, err := g.Administrator(ctx)
	return err
}

func serviceOf(method string) string {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return service
}

// admit proves who calls. Its error is what the client is told.
func (g *Guard) admit(ctx context.Context, method string) (*caller, error) {
	c := &caller{g: g, method: method, conn: connectionOf(ctx)}
	if p, ok := peer.FromContext(ctx); ok {
		c.peer = p.Addr
	}
	if c.conn != nil {
		c.conn.calls.Add(1)
	}
	wanted, err := clientID(ctx)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	policy := g.policy
	g.mu.Unlock()
	if policy == nil {
		if c.client = wanted; wanted == "" {
			c.client = anonymous()
		}
		c.limits = g.cfg.Limiter.Client(c.client, "")
		return c, nil
	}
	id, err := g.identify(ctx, c, policy)
	if err == nil {
		c.client, err = nameOf(&id, wanted)
	}
	if err == nil && g.cfg.Revocations.Revoked(&id, c.client) {
		err = auth.ErrRevoked
	}
	if err != nil {
		g.refused(err)
		g.cfg.Audit.Note(audit.Refused, slog.String("address", c.address()), slog.String("method", method), slog.String("reason", err.Error()))
		return nil, errUnauthenticated
	}
	c.access.Store(policy.Access(id))
	c.limits = g.cfg.Limiter.Client(c.client, id.Subject)
	return c, nil
}

// identify finds out who calls: by its token, its certificate, or both.
func (g *Guard) identify(ctx context.Context, c *caller, policy *auth.Policy) (auth.Identity, error) {
	certified, hasCertificate := g.certificate(c.conn)
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 {
		if hasCertificate || policy.Admits() {
			return certified, nil
		}
		return certified, auth.ErrNoCredentials
	}
	token, bearer := cutPrefixFold(values[0], "Bearer ")
	if len(values) > 1 || !bearer {
		return certified, fmt.Errorf("%w: authorization is not one Bearer token", auth.ErrBadToken)
	}
	if g.cfg.Verifier == nil {
		return certified, fmt.Errorf("%w: no issuer is configured", auth.ErrBadToken)
	}
	id, err := g.cfg.Verifier.Verify(ctx, token)
	if err != nil {
		return certified, err
	}
	return auth.Join(id, certified), nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func (g *Guard) certificate(conn *connection) (auth.Identity, bool) {
	if conn == nil || g.cfg.Kind == "" {
		return auth.Identity{}, false
	}
	info, ok := conn.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return auth.Identity{}, false
	}
	id, ok := auth.Certified(info.State.VerifiedChains[0][0], g.cfg.Kind)
	if ok && !time.Now().Before(id.Expires) { // the connection has outlived it
		return auth.Identity{}, false
	}
	return id, ok
}

// nameOf is the client's id: its subject, or another that its token allows. Who proves nothing cannot take the name of somebody who does.
func nameOf(id *auth.Identity, wanted string) (string, error) {
	switch {
	case id.Anonymous() && wanted == "":
		return anonymous(), nil
	case id.Anonymous():
		return (anonymousPrefix + wanted)[:min(len(anonymousPrefix)+len(wanted), maxClientID)], nil
	case wanted == "" || wanted == id.Subject || slices.Contains(id.Clients, wanted):
		if wanted == "" {
			return id.Subject, nil
		}
		return wanted, nil
	}
	return "", errClientID
}

const (
	anonymousPrefix = "anon-"
	maxClientID     = 128
)

func anonymous() string { return anonymousPrefix + rand.Text()[:8] }

// clientID is what the client calls itself; empty if it says nothing.
func clientID(ctx context.Context) (string, error) {
	ids := metadata.ValueFromIncomingContext(ctx, "client-id")
	if len(ids) == 0 {
		return "", nil
	}
	id := ids[0]
	if len(ids) > 1 || id == "" || len(id) > maxClientID {
		return "", &broker.InvalidError{Field: "client-id", Reason: "it is one text of 1 to 128 characters"}
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return "", &broker.InvalidError{Field: "client-id", Reason: "it holds printable ASCII characters without spaces"}
		}
	}
	return id, nil
}
