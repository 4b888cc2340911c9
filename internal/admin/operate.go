package admin

import (
	"context"
	"log/slog"

	"google.golang.org/grpc/codes"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/topic"
)

// How many sessions and topics are listed.
const (
	defaultSessions = 100
	maxSessions     = 10_000
	defaultTopics   = 100
	maxTopics       = 1000
)

// ListNodes implements runnelv1.AdminServiceServer.
func (s *Service) ListNodes(ctx context.Context, _ *runnelv1.ListNodesRequest) (*runnelv1.ListNodesResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	return s.cfg.Server.Nodes(), nil
}

// GetServerInfo implements runnelv1.AdminServiceServer.
func (s *Service) GetServerInfo(ctx context.Context, _ *runnelv1.GetServerInfoRequest) (*runnelv1.GetServerInfoResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	return s.cfg.Server.Info(), nil
}

// ListSessions implements runnelv1.AdminServiceServer.
func (s *Service) ListSessions(ctx context.Context, r *runnelv1.ListSessionsRequest) (*runnelv1.ListSessionsResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	if _, known := runnelv1.SessionOrder_name[int32(r.GetOrder())]; !known {
		return nil, invalid("order", "it is not one this server knows")
	}
	limit := int(r.GetLimit())
	if limit == 0 {
		limit = defaultSessions
	}
	list, matched := s.cfg.Server.Sessions(r.GetMatch(), r.GetOrder(), min(limit, maxSessions))
	return &runnelv1.ListSessionsResponse{Sessions: list, Matched: uint32(matched)}, nil
}

// GetSession implements runnelv1.AdminServiceServer.
func (s *Service) GetSession(ctx context.Context, r *runnelv1.GetSessionRequest) (*runnelv1.GetSessionResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	one, subs, ok := s.cfg.Server.Session(r.GetSessionId())
	if !ok {
		return nil, fail(codes.NotFound, "UNKNOWN_SESSION", "there is no session with this id; it may be over")
	}
	return &runnelv1.GetSessionResponse{Session: one, Subscriptions: subs}, nil
}

// Disconnect implements runnelv1.AdminServiceServer.
func (s *Service) Disconnect(ctx context.Context, r *runnelv1.DisconnectRequest) (*runnelv1.DisconnectResponse, error) {
	by, err := s.cfg.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	given := 0
	for _, v := range []string{r.GetSessionId(), r.GetClientId(), r.GetSubject()} {
		if v != "" {
			given++
		}
	}
	if given != 1 {
		return nil, invalid("session_id", "name one of session_id, client_id and subject")
	}
	n := s.cfg.Server.Disconnect(func(id, client, subject string) bool {
		return r.GetSessionId() == id || r.GetClientId() == client || r.GetSubject() != "" && r.GetSubject() == subject
	})
	if n == 0 && r.GetSessionId() != "" {
		return nil, fail(codes.NotFound, "UNKNOWN_SESSION", "there is no session with this id; it may be over")
	}
	s.cfg.Audit.Note(audit.Operated, slog.String("client", by), slog.String("act", "disconnect"), slog.Int("ended", n))
	return &runnelv1.DisconnectResponse{Ended: uint32(n)}, nil
}

// ListNamespaces implements runnelv1.AdminServiceServer.
func (s *Service) ListNamespaces(ctx context.Context, _ *runnelv1.ListNamespacesRequest) (*runnelv1.ListNamespacesResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	return &runnelv1.ListNamespacesResponse{Namespaces: s.cfg.Server.Namespaces()}, nil
}

// ListBusyTopics implements runnelv1.AdminServiceServer.
func (s *Service) ListBusyTopics(ctx context.Context, r *runnelv1.ListBusyTopicsRequest) (*runnelv1.ListBusyTopicsResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	var pattern *topic.Pattern
	if r.GetPattern() != "" {
		p, err := topic.ParsePattern(r.GetPattern())
		if err != nil {
			return nil, invalid("pattern", err.Error())
		}
		pattern = &p
	}
	if _, known := runnelv1.BusyTopicOrder_name[int32(r.GetOrder())]; !known {
		return nil, invalid("order", "it is not one this server knows")
	}
	limit := int(r.GetLimit())
	if limit == 0 {
		limit = defaultTopics
	}
	list, matched, err := s.cfg.Server.BusyTopics(ctx, pattern, r.GetOrder(), min(limit, maxTopics))
	if err != nil {
		return nil, err
	}
	return &runnelv1.ListBusyTopicsResponse{Topics: list, Matched: uint32(matched)}, nil
}

// TrimNamespace implements runnelv1.AdminServiceServer.
func (s *Service) TrimNamespace(ctx context.Context, r *runnelv1.TrimNamespaceRequest) (*runnelv1.TrimNamespaceResponse, error) {
	by, err := s.cfg.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	oldest, err := s.cfg.Server.Trim(ctx, r.GetNamespace(), r.GetUpToOffset())
	if err != nil {
		return nil, err
	}
	s.cfg.Audit.Note(audit.Operated, slog.String("client", by), slog.String("act", "trim"), slog.String("namespace", r.GetNamespace()), slog.Uint64("up_to", r.GetUpToOffset()))
	return &runnelv1.TrimNamespaceResponse{OldestOffset: oldest}, nil
}

// DeleteNamespace implements runnelv1.AdminServiceServer.
func (s *Service) DeleteNamespace(ctx context.Context, r *runnelv1.DeleteNamespaceRequest) (*runnelv1.DeleteNamespaceResponse, error) {
	by, err := s.cfg.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Server.Delete(ctx, r.GetNamespace()); err != nil {
		return nil, err
	}
	s.cfg.Audit.Note(audit.Operated, slog.String("client", by), slog.String("act", "delete"), slog.String("namespace", r.GetNamespace()))
	return &runnelv1.DeleteNamespaceResponse{}, nil
}

// Drain implements runnelv1.AdminServiceServer.
func (s *Service) Drain(ctx context.Context, _ *runnelv1.DrainRequest) (*runnelv1.DrainResponse, error) {
	by, err := s.cfg.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	s.cfg.Audit.Note(audit.Operated, slog.String("client", by), slog.String("act", "drain"))
	s.cfg.Server.Drain()
	return &runnelv1.DrainResponse{}, nil
}

// Reload implements runnelv1.AdminServiceServer.
func (s *Service) Reload(ctx context.Context, _ *runnelv1.ReloadRequest) (*runnelv1.ReloadResponse, error) {
	by, err := s.cfg.Administrator(ctx)
	if err != nil {
		return nil, err
	}
	restart, err := s.cfg.Server.Reload()
	if err != nil {
		return nil, fail(codes.FailedPrecondition, "NOT_RELOADED", err.Error())
	}
	s.cfg.Audit.Note(audit.Operated, slog.String("client", by), slog.String("act", "reload"))
	return &runnelv1.ReloadResponse{Restart: restart}, nil
}

// GetConfiguration implements runnelv1.AdminServiceServer.
func (s *Service) GetConfiguration(ctx context.Context, _ *runnelv1.GetConfigurationRequest) (*runnelv1.GetConfigurationResponse, error) {
	if _, err := s.cfg.Administrator(ctx); err != nil {
		return nil, err
	}
	text, err := s.cfg.Server.Configuration()
	if err != nil {
		return nil, fail(codes.FailedPrecondition, "NO_CONFIGURATION", err.Error())
	}
	return &runnelv1.GetConfigurationResponse{Text: text}, nil
}
