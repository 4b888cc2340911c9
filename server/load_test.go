package server_test

import (
	"testing"
	"time"

	orcav3 "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

func plain(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A server reports its sessions, and how much of its room they take: more of them take more, and one without any says so.
func TestLoadReport(t *testing.T) {
	t.Parallel()
	report := func(s *runneltest.Server) *orcav3.OrcaLoadReport {
		t.Helper()
		stream, err := orcaservice.NewOpenRcaServiceClient(plain(t, s.Addr)).StreamCoreMetrics(t.Context(), &orcaservice.OrcaLoadReportRequest{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	s := runneltest.StartServer(t, server.Config{})
	if r := report(s); r.GetRpsFractional() != 0 || r.GetApplicationUtilization() != 0 {
		t.Errorf("nobody is there: %v", r)
	}
	client := s.Client()
	var seen []float64
	for n := 1; n <= 3; n++ {
		if _, err := client.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := report(s)
		if r.GetRpsFractional() != float64(n) || r.GetMemUtilization() <= 0 {
			t.Errorf("%d sessions: %v", n, r)
		}
		seen = append(seen, r.GetApplicationUtilization())
	}
	if seen[0] <= 0 || seen[1] <= seen[0] || seen[2] <= seen[1] || seen[2] > 0.01 {
		t.Errorf("utilization %v", seen)
	}
	limited := runneltest.StartServer(t, server.Config{Limits: server.Limits{ServerSessions: 4}})
	if _, err := limited.Client().Session(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := report(limited); r.GetApplicationUtilization() != 0.25 {
		t.Errorf("one session of four: %v", r)
	}
}

// Load is for whoever is known.
func TestLoadReportIsGuarded(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	cfg := server.Config{
		Issuers: map[string]server.Issuer{"test": id.issuer}, Audit: "off",
		Roles: map[string]server.Role{"user": {Authenticated: true, Subscribe: []string{"a.>"}}}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
	}
	s := runneltest.StartServer(t, cfg)
	user := id.token(t, "alice", time.Hour, nil)
	for token, want := range map[string]codes.Code{user: codes.OK, "": codes.Unauthenticated, "x": codes.Unauthenticated} {
		stream, err := orcaservice.NewOpenRcaServiceClient(plain(t, s.Addr)).StreamCoreMetrics(bearer(t.Context(), token), &orcaservice.OrcaLoadReportRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// Whoever watches health or load does not hold up a server that stops.
func TestWatchersEndWithTheServer(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{})
	conn := plain(t, s.Addr)
	load, err := orcaservice.NewOpenRcaServiceClient(conn).StreamCoreMetrics(t.Context(), &orcaservice.OrcaLoadReportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	health, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := load.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := health.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if r, err := health.Recv(); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("%v, %v", r, err)
	}
}
