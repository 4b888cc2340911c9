package e2e

import (
	"context"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A client that balances by load gives servers new sessions as they have room: here one, two and seven parts. It takes reports every 30 s,
// which is the least that gRPC allows, so the test runs only where RUNNEL_SPREAD is set.
func TestWeighted(t *testing.T) {
	if os.Getenv("RUNNEL_SPREAD") == "" {
		t.Skip("takes a minute; make spread runs it")
	}
	var addresses []string
	var servers []*runneltest.Server
	for _, room := range []int{200, 400, 1400} {
		s := runneltest.StartServer(t, server.Config{Limits: server.Limits{ServerSessions: room}})
		servers = append(servers, s)
		addresses = append(addresses, s.Addr)
	}
	client, err := runnel.Dial(strings.Join(addresses, ","), runnel.WithBalancing(runnel.Weighted))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	count := func() (each []int) {
		for _, s := range servers {
			res, err := runnel.Admin(t.Context(), s.Client(), func(ctx context.Context, a runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
				return a.ListSessions(ctx, &runnelv1.ListSessionsRequest{Limit: 10_000})
			})
			if err != nil {
				t.Fatal(err)
			}
			each = append(each, len(res.GetSessions()))
		}
		return each
	}
	open := func(n int) {
		for range n {
			if _, err := client.Session(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	open(60)
	before := count()
	// Reports come every 30 s; the balancer believes one when it is 10 s old.
	time.Sleep(45 * time.Second)
	const sessions = 500
	open(sessions)
	after := count()
	t.Logf("the first 60 sessions: %v; %d more, with weights: %v", before, sessions, []int{after[0] - before[0], after[1] - before[1], after[2] - before[2]})
	for i, want := range []float64{0.1, 0.2, 0.7} {
		if got := float64(after[i]-before[i]) / sessions; math.Abs(got-want) > 0.05 {
			t.Errorf("server %d has room for %.0f %% and got %.0f %%", i+1, 100*want, 100*got)
		}
	}
}
