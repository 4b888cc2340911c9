package admin

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/topic"
)

// ServiceConfig is what a Service works on.
type ServiceConfig struct {
	// Administrator returns the caller's client id; its error is a status, for callers who may not act on the whole server.
	Administrator func(context.Context) (string, error)
	// Revocations is nil where the server does not authenticate.
	Revocations *auth.Revocations
	// Sever cuts the streams of all who were revoked, and returns how many.
	Sever func() int
	// Expires is when a token that is in use expires; false if it is not.
	Expires func(tokenID string) (time.Time, bool)
	Audit   *audit.Log
	Server  Operator
}

// Operator is the server, as operators see it and act upon it.
type Operator interface {
	Info() *runnelv1.GetServerInfoResponse
	Nodes() *runnelv1.ListNodesResponse
	Sessions(match string, order runnelv1.SessionOrder, limit int) (list []*runnelv1.SessionInfo, matched int)
	Session(id string) (*runnelv1.SessionInfo, []*runnelv1.SubscriptionInfo, bool)
	Disconnect(pick func(id, client, subject string) bool) int
	Namespaces() []*runnelv1.NamespaceInfo
	// BusyTopics returns at most limit topics that match; a pattern that is nil matches all. Its error is a status.
	BusyTopics(ctx context.Context, p *topic.Pattern, order runnelv1.BusyTopicOrder, limit int) (list []*runnelv1.BusyTopic, matched int, err error)
	// Trim removes a namespace's events up to an offset. Its error is a status.
	Trim(ctx context.Context, namespace string, upTo uint64) (oldest uint64, err error)
	// Delete removes a namespace for good. Its error is a status.
	Delete(ctx context.Context, namespace string) error
	Drain()
	// Reload reads the configuration again; its error has a line for each problem.
	Reload() (restart []string, err error)
	Configuration() (string, error)
}

// Service is runnel.v1.AdminService.
type Service struct {
	runnelv1.UnimplementedAdminServiceServer
	cfg ServiceConfig
}

// NewService returns a Service.
func NewService(cfg ServiceConfig) *Service { return &Service{cfg: cfg} }

var kinds = map[runnelv1.RevokedKind]string{
	runnelv1.RevokedKind_REVOKED_KIND_CLIENT:  auth.RevokeClient,
	runnelv1.RevokedKind_REVOKED_KIND_SUBJECT: auth.RevokeSubject,
	runnelv1.RevokedKind_REVOKED_KIND_TOKEN:   auth.RevokeToken,
}

// enter checks what all calls need.
func (s *Service) enter(ctx context.Context) (by string, err error) {
	if by, err = s.cfg.Administrator(ctx); err != nil {
		return "", err
	}
	if s.cfg.Revocations == nil {
		return "", fail(codes.FailedPrecondition, "AUTHENTICATION_OFF", "this server does not authenticate, so there is nobody to revoke")
	}
	return by, nil
}

func fail(code codes.Code, reason, message string) error {
	st, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "runnel"})
	if err != nil {
		return status.Error(code, message)
	}
	return st.Err()
}

func invalid(field, reason string) error {
	st, err := status.New(codes.InvalidArgument, field+": "+reason).WithDetails(
		&errdetails.ErrorInfo{Reason: "INVALID_FIELD", Domain: "runnel"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: reason}}})
	if err != nil {
		return status.Error(codes.InvalidArgument, field+": "+reason)
	}
	return st.Err()
}

// Revoke implements runnelv1.AdminServiceServer.
func (s *Service) Revoke(ctx context.Context, r *runnelv1.RevokeRequest) (*runnelv1.RevokeResponse, error) {
	by, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	kind, known := kinds[r.GetKind()]
	now := time.Now()
	switch {
	case !known:
		return nil, invalid("kind", "it is not client, subject or token")
	case !auth.Printable(r.GetValue()):
		return nil, invalid("value", "it is not 1 to 128 printable ASCII characters without spaces")
	case r.GetUntilMs() < 0 || r.GetUntilMs() > 0 && r.GetUntilMs() <= now.UnixMilli():
		return nil, invalid("until_ms", "it is over already")
	}
	one := auth.Revocation{Kind: kind, Value: r.GetValue(), At: now}
	if r.GetUntilMs() > 0 {
		one.Until = time.UnixMilli(r.GetUntilMs())
	} else if at, used := s.cfg.Expires(r.GetValue()); used && kind == auth.RevokeToken {
		one.Until = at
	}
	if err := s.cfg.Revocations.Add(one); err != nil {
		return nil, fail(codes.Unavailable, "STORAGE_FAILED", err.Error())
	}
	cut := s.cfg.Sever()
	s.cfg.Audit.Note(audit.Revoked, slog.String("client", by), slog.String("kind", kind), slog.String("value", one.Value), slog.Int("cut", cut))
	return &runnelv1.RevokeResponse{Revocation: describe(one), Cut: uint32(cut)}, nil
}

// Restore implements runnelv1.AdminServiceServer.
func (s *Service) Restore(ctx context.Context, r *runnelv1.RestoreRequest) (*runnelv1.RestoreResponse, error) {
	by, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	kind, known := kinds[r.GetKind()]
	if !known {
		return nil, invalid("kind", "it is not client, subject or token")
	}
	switch was, err := s.cfg.Revocations.Lift(kind, r.GetValue()); {
	case err != nil:
		return nil, fail(codes.Unavailable, "STORAGE_FAILED", err.Error())
	case !was:
		return nil, fail(codes.NotFound, "NOT_REVOKED", "there is no such revocation")
	}
	s.cfg.Audit.Note(audit.Revoked, slog.String("client", by), slog.String("kind", kind), slog.String("value", r.GetValue()), slog.Bool("restored", true))
	return &runnelv1.RestoreResponse{}, nil
}

// ListRevocations implements runnelv1.AdminServiceServer.
func (s *Service) ListRevocations(ctx context.Context, _ *runnelv1.ListRevocationsRequest) (*runnelv1.ListRevocationsResponse, error) {
	if _, err := s.enter(ctx); err != nil {
		return nil, err
	}
	list := &runnelv1.ListRevocationsResponse{}
	for _, one := range s.cfg.Revocations.List() {
		list.Revocations = append(list.Revocations, describe(one))
	}
	return list, nil
}

func describe(one auth.Revocation) *runnelv1.Revocation {
	r := &runnelv1.Revocation{Value: one.Value, AtMs: one.At.UnixMilli()}
	for kind, name := range kinds {
		if name == one.Kind {
			r.Kind = kind
		}
	}
	if !one.Until.IsZero() {
		r.UntilMs = one.Until.UnixMilli()
	}
	return r
}
