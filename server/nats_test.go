package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// onNATS is a configuration of a server on that cluster.
func onNATS(c *natstest.Cluster) server.Config {
	return server.Config{Engine: server.OnNATS, NATS: server.NATS{URLs: c.URLs(), Replicas: c.Size()}}
}

// expect receives the events with the numbers from and up to to, without a hole or a repetition.
func expect(t *testing.T, sub *runnel.Subscription, from, to int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := from; i < to; i++ {
		if e, err := sub.Next(ctx); err != nil || string(e.Payload) != fmt.Sprint(i) {
			t.Fatalf("event %d: %q, %v", i, e.Payload, err)
		}
	}
}

// Any server serves any client: what is published at one is followed at another, and a client resumes at a third; also after all have gone.
func TestNATS(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	var servers []*runneltest.Server
	for range 3 {
		servers = append(servers, runneltest.StartServer(t, onNATS(cluster)))
	}
	publisher := servers[0].Client()
	var last *runnel.Ack
	publish := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			ack, err := publisher.Publish(t.Context(), "a.b", fmt.Append(nil, i), runnel.ID(fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			last = &ack
		}
	}
	publish(0, 10)
	if last.Durability != "REPLICATED" {
		t.Errorf("durability %v", last.Durability)
	}
	follower, err := servers[1].Client().Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	publish(10, 20)
	expect(t, follower, 0, 20)
	if ack, err := servers[2].Client().Publish(t.Context(), "a.b", nil, runnel.ID("19")); err != nil || !ack.Duplicate || ack.Position != last.Position {
		t.Errorf("the same id at another server: %+v, %v", ack, err)
	}
	position := follower.Position()
	follower.Close()
	publish(20, 30)
	resumed, err := servers[2].Client().Subscribe(t.Context(), "a.>", runnel.From(runnel.After(position)))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, resumed, 20, 30)
	for _, s := range servers {
		s.Stop()
	}
	servers[1].Start()
	again, err := servers[1].Client().Subscribe(t.Context(), "a.>", runnel.From(runnel.After(position)))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, again, 20, 30)
}

// While NATS is away health and readiness say so, publishers are told to come again, and what is in memory is read as ever; then it goes on.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	cfg := onNATS(cluster)
	cfg.Admin = "127.0.0.1:0"
	s := runneltest.StartServer(t, cfg)
	c := newClients(t, s.Addr)
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	health := healthv1.NewHealthClient(conn)
	status503 := func() bool {
		res, err := http.Get("http://" + s.AdminAddr + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusServiceUnavailable
	}
	until := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			res, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "runnel.v1.StreamService"})
			if err != nil {
				t.Fatal(err)
			}
			if res.GetStatus() == want && status503() == (want == healthv1.HealthCheckResponse_NOT_SERVING) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("health is %v", res.GetStatus())
			}
		}
	}
	client := s.Client()
	live, err := client.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := client.Publish(t.Context(), "a.b", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, live, 0, 10)
	until(healthv1.HealthCheckResponse_SERVING)
	if m := get(t, "http://"+s.AdminAddr+"/metrics"); !strings.Contains(m, "\nrunnel_namespaces 1\n") || !strings.Contains(m, "\nrunnel_nodes 1\n") || !strings.Contains(m, "\nrunnel_nodes_heard 1\n") || !strings.Contains(m, "\nrunnel_storage_failed 0\n") || strings.Contains(m, "runnel_storage_disk_bytes") {
		t.Errorf("metrics:\n%s", m)
	}
	cluster.Stop(0)
	until(healthv1.HealthCheckResponse_NOT_SERVING)
	_, err = c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b", EventId: "away"})
	retry := slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool { _, is := d.(*errdetails.RetryInfo); return is })
	if status.Code(err) != codes.Unavailable || reason(err) != "STORAGE_UNAVAILABLE" || !retry {
		t.Errorf("a publish while NATS is away: %v, retry %v", err, retry)
	}
	recent, err := s.Client().Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, recent, 0, 10)
	cluster.Start(0)
	until(healthv1.HealthCheckResponse_SERVING)
	if _, err := client.Publish(t.Context(), "a.b", []byte("10")); err != nil {
		t.Fatal(err)
	}
	expect(t, live, 10, 11)
	expect(t, recent, 10, 11)
}

// What keeps a server from starting is one line that says what to do, and names no secret.
func TestNATSThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	one := natstest.New(t, 1, func(o *natsserver.Options) { o.Authorization = "s3cret"; o.MaxPayload = 1 << 20 })
	without := natstest.New(t, 1, func(o *natsserver.Options) { o.JetStream = false })
	kept := server.Config{Engine: server.OnNATS, NATS: server.NATS{URLs: one.URLs(), Token: "s3cret", Replicas: 1}}
	s := runneltest.StartServer(t, kept)
	if _, err := s.Client().Publish(t.Context(), "a.b", nil); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	for name, c := range map[string]struct {
		change func(*server.Config)
		want   string
		and    string
	}{
		"not reachable":  {func(c *server.Config) { c.NATS.URLs = []string{"nats://127.0.0.1:1"} }, "NATS is not reachable at nats://127.0.0.1:1: ", ""},
		"not let in":     {func(c *server.Config) { c.NATS.Token = "wr0ng" }, "NATS refuses this node's credentials", ""},
		"no JetStream":   {func(c *server.Config) { c.NATS.URLs, c.NATS.Token = without.URLs(), "" }, "NATS has no JetStream for this node: ", ""},
		"one server":     {func(c *server.Config) { c.NATS.Replicas = 3 }, "NATS server nats-0 is no part of a cluster, and 3 replicas are asked for: ", ""},
		"large events":   {func(c *server.Config) { c.Limits.MaxPayloadBytes = 1 << 20 }, "NATS takes messages of up to 1048576 bytes, and events may have ", ""},
		"other settings": {func(c *server.Config) { c.Namespaces = map[string]server.Namespace{"a": {History: "memory"}} }, "stream runnel_a", " exists with other settings: storage is "},
		"no history":     {func(c *server.Config) { c.Namespaces = map[string]server.Namespace{"a": {History: "none"}} }, "stream runnel_a", " exists, and namespace a is to keep no history: "},
		"no file":        {func(c *server.Config) { c.NATS.Token, c.NATS.Credentials = "", "nowhere.creds" }, "nats: credentials: open nowhere.creds: no such file", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := kept
			cfg.Listen, cfg.Admin, cfg.Data = "127.0.0.1:0", "off", t.TempDir()+"/none"
			c.change(&cfg)
			s, err := server.New(cfg)
			if err == nil {
				s.Close()
				t.Fatal("it starts")
			}
			if m := err.Error(); !strings.HasPrefix(m, c.want) || !strings.Contains(m, c.and) || strings.Contains(m, "\n") || strings.Contains(m, "s3cret") || strings.Contains(m, "wr0ng") {
				t.Errorf("%s", m)
			}
		})
	}
}

// Limits of namespaces change in NATS while the server runs; for the cluster itself it must be started again.
func TestNATSReload(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	cfg := onNATS(cluster)
	cfg.Listen, cfg.Admin, cfg.Data, cfg.Node = "127.0.0.1:0", "off", t.TempDir()+"/none", "n1"
	cfg.Namespaces = map[string]server.Namespace{"a": {}}
	s := run(t, cfg)
	c := newClients(t, s.Addr().String())
	for range 100 {
		if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b"}); err != nil {
			t.Fatal(err)
		}
	}
	next := cfg
	next.NATS.Prefix, next.Node = "other", "n2"
	next.Namespaces = map[string]server.Namespace{"a": {MaxEvents: 10}}
	if restart, err := s.Reload(next); err != nil || !slices.Equal(restart, []string{"nats", "node"}) {
		t.Errorf("%q, %v", restart, err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		res, err := c.GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.b"})
		if err != nil {
			t.Fatal(err)
		}
		if res.GetOldestOffset() == 91 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the oldest is %d", res.GetOldestOffset())
		}
	}
}

// What docs/security.md says that a node's user needs is enough for all that a node does.
func TestNATSPermissions(t *testing.T) {
	t.Parallel()
	allowed := &natsserver.Permissions{
		Publish:   &natsserver.SubjectPermission{Allow: []string{"runnel.>", "$JS.API.>", "$JS.FC.>"}},
		Subscribe: &natsserver.SubjectPermission{Allow: []string{"runnel.>", "_INBOX.>"}},
	}
	cluster := natstest.New(t, 1, func(o *natsserver.Options) {
		o.Users = []*natsserver.User{{Username: "node", Password: "s3cret", Permissions: allowed}}
	})
	var refused atomic.Int64
	cfg := onNATS(cluster)
	cfg.NATS.User, cfg.NATS.Password = "node", "s3cret"
	cfg.Logger = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if strings.Contains(strings.ToLower(string(b)), "permission") {
			refused.Add(1)
			t.Logf("%s", b)
		}
		return len(b), nil
	}), nil))
	id := newAuthority(t)
	cfg.Namespaces = map[string]server.Namespace{"a": {MaxEvents: 1000}, "none": {History: "none"}}
	cfg.Roles = map[string]server.Role{"all": {Claims: []string{"role=all"}, Publish: []string{">"}, Subscribe: []string{">"}, History: []string{">"}, Admin: []string{">"}}}
	cfg.Node = "n1"
	one := secured(t, id, cfg)
	cfg.Node = "n2"
	two := secured(t, id, cfg)
	token := id.token(t, "all", time.Hour, role("all"))
	client, other := one.Client(runnel.WithToken(token)), two.Client(runnel.WithToken(token))
	passing, err := other.Subscribe(t.Context(), "none.>")
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"a.b", "none.b"} {
		for i := range 20 {
			if _, err := client.Publish(t.Context(), topic, fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	expect(t, passing, 0, 20)
	two.Stop()
	two.Start() // it reads from NATS
	kept, err := other.Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, kept, 0, 20)
	c := newClients(t, one.Addr)
	ctx := bearer(t.Context(), token)
	if _, err := c.admin.TrimNamespace(ctx, &runnelv1.TrimNamespaceRequest{Namespace: "a", UpToOffset: 5}); err != nil {
		t.Error(err)
	}
	if _, err := c.ListTopics(ctx, &runnelv1.ListTopicsRequest{Pattern: "a.>"}); err != nil {
		t.Error(err)
	}
	if _, err := c.admin.Revoke(ctx, &runnelv1.RevokeRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_TOKEN, Value: "x"}); err != nil {
		t.Error(err)
	}
	if r, err := c.admin.ListNodes(ctx, &runnelv1.ListNodesRequest{}); err != nil || nodeIDs(r) != "n1 n2" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := c.admin.DeleteNamespace(ctx, &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); err != nil {
		t.Error(err)
	}
	if n := refused.Load(); n > 0 {
		t.Errorf("NATS refused %d times", n)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
