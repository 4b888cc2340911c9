package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/orca"

	"github.com/runnelhq/runnel/internal/budget"
)

// watching is a stream that is not a session, with a context that ends when the server stops.
type watching struct {
	grpc.ServerStream
	ctx context.Context
}

func (w *watching) Context() context.Context { return w.ctx }

// reporter tells clients that balance by load how this server stands (xds.service.orca.v3.OpenRcaService). It works when it is asked only.
type reporter Server

// ServerMetrics implements orca.ServerMetricsProvider. A client gives a server new streams in proportion to queries per second over
// utilization: the queries of a server of streams are its open sessions. Utilization is therefore made of what grows with sessions only.
// With what all share, as recent events, a server with few sessions would look worse than it is, and be left alone.
func (r *reporter) ServerMetrics() *orca.ServerMetrics {
	sessions := float64(r.meter.Sessions.Load())
	held := int64(0)
	for _, k := range budget.Kinds() {
		held += r.budget.Used(k)
	}
	return &orca.ServerMetrics{
		QPS: sessions, AppUtilization: (*Server)(r).utilization(), CPUUtilization: -1, EPS: -1,
		MemUtilization: min(1, float64(held)/float64(r.budget.Limit())),
		Utilization:    map[string]float64{}, RequestCost: map[string]float64{}, NamedMetrics: map[string]float64{},
	}
}

// utilization is how much of its room for sessions is taken: 1 is all of it.
func (s *Server) utilization() float64 {
	used := float64(s.budget.Used(budget.Sessions)) / float64(s.budget.Share(budget.Sessions))
	if most := s.mostSessions.Load(); most > 0 {
		used = max(used, float64(s.meter.Sessions.Load())/float64(most))
	}
	return used
}
