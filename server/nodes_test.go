package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// startNodes starts servers on one cluster, named a, b, and so on.
func startNodes(t *testing.T, cfg server.Config, n int) (list []*runneltest.Server) {
	t.Helper()
	for i := range n {
		cfg.Node = string(rune('a' + i))
		list = append(list, runneltest.StartServer(t, cfg))
	}
	return list
}

// nodesAt is what a server says of all, once its answer is as ok wants it.
func nodesAt(t *testing.T, s *runneltest.Server, ok func(r *runnelv1.ListNodesResponse) bool) *runnelv1.ListNodesResponse {
	t.Helper()
	c := newClients(t, s.Addr)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := c.admin.ListNodes(t.Context(), &runnelv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if ok(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("nodes: %v", r)
		}
	}
}

func nodeIDs(r *runnelv1.ListNodesResponse) string {
	var ids []string
	for _, n := range r.GetNodes() {
		ids = append(ids, n.GetNode())
	}
	return strings.Join(ids, " ")
}

func are(ids string) func(*runnelv1.ListNodesResponse) bool {
	return func(r *runnelv1.ListNodesResponse) bool { return nodeIDs(r) == ids && !r.GetStale() }
}

// endpointsOf is what a session is told when it begins, sorted.
func endpointsOf(t *testing.T, s *runneltest.Server) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := newClients(t, s.Addr).EstablishStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	if err := control(stream, func(c *runnelv1.Control) bool { list = c.GetWelcome().GetEndpoints(); return c.GetWelcome() != nil }); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(list))
}

// Every server of a cluster knows the others, and how they are; clients are told of them, and go on there without a pause that matters when
// theirs stops.
func TestNodes(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	cfg := onNATS(cluster)
	cfg.Version, cfg.Endpoints = "v9", []string{"other.example:1"}
	servers := startNodes(t, cfg, 3)
	a, b, c := servers[0], servers[1], servers[2]
	for _, s := range servers {
		nodesAt(t, s, are("a b c"))
	}
	if got, want := endpointsOf(t, a), slices.Sorted(slices.Values([]string{b.Addr, c.Addr, "other.example:1"})); !slices.Equal(got, want) {
		t.Errorf("endpoints %q, want %q", got, want)
	}
	client := a.Client()
	sub, err := client.Subscribe(t.Context(), "q.>")
	if err != nil {
		t.Fatal(err)
	}
	publisher := b.Client()
	for i := range 100 {
		if _, err := publisher.Publish(t.Context(), "q.a", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, sub, 0, 100)
	r := nodesAt(t, c, func(r *runnelv1.ListNodesResponse) bool {
		n := r.GetNodes()
		return n[0].GetSessions() == 1 && n[0].GetDeliveredPerS() > 0 && n[1].GetPublishedPerS() > 0
	})
	one := r.GetNodes()[0]
	if one.GetAddress() != a.Addr || one.GetVersion() != "v9" || one.GetStartedMs() == 0 || one.GetSubscriptions() != 1 || one.GetNamespaces() != 1 || one.GetLoad() <= 0 || one.GetLoad() > 1 ||
		one.GetSelf() || !r.GetNodes()[2].GetSelf() || one.GetDraining() || one.GetTrouble() {
		t.Errorf("a as c sees it: %v", one)
	}
	a.Stop() // its session moves
	if i, err := publisher.Publish(t.Context(), "q.a", []byte("100")); err != nil {
		t.Fatal(i, err)
	}
	expect(t, sub, 100, 101)
	if slices.Contains(endpointsOf(t, b), a.Addr) {
		t.Error("clients are told to go to a server that has stopped")
	}
	nodesAt(t, b, are("b c"))
	a.Start()
	nodesAt(t, b, are("a b c"))
}

// A server that stops says so before it tells its sessions to move, so that nobody is sent there.
func TestNodeThatDrains(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	cfg := onNATS(cluster)
	cfg.DrainNotice = 3 * time.Second
	servers := startNodes(t, cfg, 2)
	a, b := servers[0], servers[1]
	nodesAt(t, b, are("a b"))
	stream, err := newClients(t, a.Addr).EstablishStream(t.Context()) // a client that stays as long as it may
	if err != nil {
		t.Fatal(err)
	}
	if err := control(stream, func(c *runnelv1.Control) bool { return c.GetWelcome() != nil }); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); a.Stop() }()
	var to []string
	if err := control(stream, func(c *runnelv1.Control) bool { to = c.GetDrain().GetEndpoints(); return c.GetDrain() != nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(to, []string{b.Addr}) {
		t.Errorf("told to move to %q", to)
	}
	r := nodesAt(t, b, func(r *runnelv1.ListNodesResponse) bool { return r.GetNodes()[0].GetDraining() })
	if nodeIDs(r) != "a b" || len(endpointsOf(t, b)) != 0 {
		t.Errorf("%v; clients are told %q", r, endpointsOf(t, b))
	}
	<-stopped
	nodesAt(t, b, are("b"))
}

// Where nothing is configured a session that is told to move has time to, if there is another node; alone it ends at once.
func TestNoticeWithOthers(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	servers := startNodes(t, onNATS(cluster), 2)
	nodesAt(t, servers[0], are("a b"))
	for i, want := range []bool{true, false} {
		stream, err := newClients(t, servers[i].Addr).EstablishStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := control(stream, func(c *runnelv1.Control) bool { return c.GetWelcome() != nil }); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan struct{})
		go func() { defer close(stopped); servers[i].Stop() }()
		within := uint32(0)
		if err := control(stream, func(c *runnelv1.Control) bool { within = c.GetDrain().GetWithinMs(); return c.GetDrain() != nil }); err != nil {
			t.Fatal(err)
		}
		if (within > 0) != want {
			t.Errorf("server %d gives %d ms", i, within)
		}
		<-stopped
	}
}

// The second server of an id does not start; when the first has gone it does. On an embedded engine a server is the only node.
func TestNodeID(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	a := startNodes(t, onNATS(cluster), 1)[0]
	cfg := onNATS(cluster)
	cfg.Node, cfg.Listen, cfg.Admin = "a", "127.0.0.1:0", "off"
	s, err := server.New(cfg)
	if err == nil {
		s.Close()
		t.Fatal("two nodes have one id")
	}
	_, port, _ := strings.Cut(a.Addr, ":")
	if m := err.Error(); !strings.HasPrefix(m, `node id "a" is in use by `) || !strings.HasSuffix(m, ":"+port+": choose another with --node") {
		t.Error(m)
	}
	other := cfg
	other.NATS.Prefix = "other"
	if s, err = server.New(other); err != nil {
		t.Fatalf("another prefix: %v", err)
	}
	s.Close()
	a.Stop()
	if s, err = server.New(cfg); err != nil {
		t.Fatal(err)
	}
	s.Close()
	alone := runneltest.StartServer(t, server.Config{})
	if n := nodesAt(t, alone, func(*runnelv1.ListNodesResponse) bool { return true }).GetNodes(); len(n) != 1 || !n[0].GetSelf() || n[0].GetAddress() != alone.Addr || n[0].GetNode() == "" {
		t.Errorf("%v", n)
	}
}

// While NATS is away servers say that what they know of each other is old, and go on telling clients of it.
func TestNodesWithoutNATS(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	servers := startNodes(t, onNATS(cluster), 2)
	nodesAt(t, servers[0], are("a b"))
	cluster.Stop(0)
	nodesAt(t, servers[0], func(r *runnelv1.ListNodesResponse) bool { return r.GetStale() && nodeIDs(r) == "a b" })
	if got := endpointsOf(t, servers[0]); !slices.Equal(got, []string{servers[1].Addr}) {
		t.Errorf("endpoints %q", got)
	}
	cluster.Start(0)
	nodesAt(t, servers[0], are("a b"))
	if _, err := servers[0].Client().Publish(t.Context(), "a.b", nil, runnel.ID("1")); err != nil {
		t.Error(err)
	}
}

// Who is revoked at one node is cut at all of them, at once, and kept out, also by nodes that start later, until one of them takes it back.
func TestRevokeAtAllNodes(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 1)
	id := newAuthority(t)
	node := func(name string) *runneltest.Server {
		t.Helper()
		cfg := onNATS(cluster)
		cfg.Node, cfg.Data = name, t.TempDir()+"/none"
		return secured(t, id, cfg)
	}
	a, b := node("a"), node("b")
	root := bearer(t.Context(), id.token(t, "root", time.Hour, role("admin")))
	token := id.token(t, "mallory", time.Hour, role("reader"))
	session, err := newClients(t, b.Addr).EstablishStream(bearer(t.Context(), token))
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, session, 1, "a.>")
	mallory := &runnelv1.RevokeRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_SUBJECT, Value: "mallory"}
	if _, err := newClients(t, a.Addr).admin.Revoke(root, mallory); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := control(session, func(*runnelv1.Control) bool { return false }); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("the session at another node: %v after %v", err, time.Since(began))
	}
	refused := func(s *runneltest.Server) bool {
		_, err := newClients(t, s.Addr).GetTopic(bearer(t.Context(), token), &runnelv1.GetTopicRequest{Topic: "a.b"})
		return status.Code(err) == codes.Unauthenticated
	}
	c := node("c")
	for _, s := range []*runneltest.Server{a, b, c} {
		if list, err := newClients(t, s.Addr).admin.ListRevocations(root, &runnelv1.ListRevocationsRequest{}); err != nil || len(list.GetRevocations()) != 1 || !refused(s) {
			t.Errorf("%v, %v, refused %v", list, err, refused(s))
		}
	}
	if _, err := newClients(t, c.Addr).admin.Restore(root, &runnelv1.RestoreRequest{Kind: mallory.GetKind(), Value: mallory.GetValue()}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); refused(a) || refused(b); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still refused")
		}
	}
	cluster.Stop(0)
	if _, err := newClients(t, a.Addr).admin.Revoke(root, mallory); status.Code(err) != codes.Unavailable || refused(a) {
		t.Errorf("a revocation that nobody keeps: %v", err)
	}
}
