package server_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/server"
)

// A day of an operator: sees who is connected and who is slow, disconnects one, who resumes; sees namespaces grow; reloads; drains.
func TestOperator(t *testing.T) {
	cfg := server.Config{
		Listen: "127.0.0.1:0", Admin: "off", Data: t.TempDir(), Version: "v9",
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}, "quiet": {History: "none"}},
	}
	var wrong error
	cfg.Reread = func() (server.Config, []string, error) {
		next := cfg
		next.DrainTimeout = time.Minute
		return next, []string{"elsewhere"}, wrong
	}
	cfg.Text = func() (string, error) { return "listen: x\n", nil }
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var running errgroup.Group
	running.Go(func() error { return s.Run(t.Context()) })
	c := newClients(t, s.Addr().String())

	reader, err := runnel.Dial(s.Addr().String(), runnel.WithClientID("reader"))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fast, err := reader.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	// A client of another kind, with credit that it never returns.
	slow, err := c.EstablishStream(clientID(t.Context(), "slow"))
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Pattern: "a.b", Credit: 3}}}); err != nil {
		t.Fatal(err)
	}
	if err := control(slow, func(c *runnelv1.Control) bool { return c.GetSubscribed() != nil }); err != nil {
		t.Fatal(err)
	}
	next := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b", Payload: []byte(fmt.Sprint(i))}); err != nil {
				t.Fatal(err)
			}
			if e, err := fast.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(i) {
				t.Fatalf("event %d: %+v, %v", i, e, err)
			}
		}
	}
	// What it asks for and does not get is counted.
	if err := slow.Send(&runnelv1.StreamRequest{RequestId: 5, Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: &runnelv1.Unsubscribe{Subscription: 77}}}); err != nil {
		t.Fatal(err)
	}
	if err := control(slow, func(c *runnelv1.Control) bool { return c.GetCommandError() != nil }); err != nil {
		t.Fatal(err)
	}
	next(0, 50)
	list, err := c.admin.ListSessions(t.Context(), &runnelv1.ListSessionsRequest{})
	if err != nil || list.GetMatched() != 2 || list.GetSessions()[0].GetClientId() != "slow" {
		t.Fatalf("%v, %v", list, err)
	}
	one, other := list.GetSessions()[0], list.GetSessions()[1]
	if one.GetLag() != 47 || one.GetDelivered() != 3 || other.GetLag() != 0 || other.GetDelivered() != 50 || other.GetP99Ms() <= 0 || other.GetSubscriptions() != 1 {
		t.Errorf("slow: %v\nfast: %v", one, other)
	}
	if one.GetErrors() != 1 || one.GetLastError() != "UNKNOWN_SUBSCRIPTION" || other.GetErrors() != 0 || other.GetLastError() != "" {
		t.Errorf("errors of %v and %v", one, other)
	}
	detail, err := c.admin.GetSession(t.Context(), &runnelv1.GetSessionRequest{SessionId: one.GetSessionId()})
	if err != nil || len(detail.GetSubscriptions()) != 1 {
		t.Fatal(detail, err)
	}
	if sub := detail.GetSubscriptions()[0]; sub.GetPattern() != "a.b" || sub.GetLag() != 47 || sub.GetCredit() != 0 || !sub.GetLive() || sub.GetPosition().GetOffset() != 3 {
		t.Errorf("%v", sub)
	}
	if picked, err := c.admin.ListSessions(t.Context(), &runnelv1.ListSessionsRequest{Match: "read", Order: runnelv1.SessionOrder_SESSION_ORDER_RATE}); err != nil || len(picked.GetSessions()) != 1 || picked.GetSessions()[0].GetClientId() != "reader" {
		t.Errorf("%v, %v", picked, err)
	}
	if _, err := c.admin.GetSession(t.Context(), &runnelv1.GetSessionRequest{SessionId: "nope"}); reason(err) != "UNKNOWN_SESSION" {
		t.Error(err)
	}
	if _, err := c.admin.Disconnect(t.Context(), &runnelv1.DisconnectRequest{}); reason(err) != "INVALID_FIELD" {
		t.Error(err)
	}
	if res, err := c.admin.Disconnect(t.Context(), &runnelv1.DisconnectRequest{ClientId: "reader"}); err != nil || res.GetEnded() != 1 {
		t.Errorf("%v, %v", res, err)
	}
	if res, err := c.admin.Disconnect(t.Context(), &runnelv1.DisconnectRequest{SessionId: one.GetSessionId()}); err != nil || res.GetEnded() != 1 {
		t.Errorf("%v, %v", res, err)
	}
	if err := control(slow, func(*runnelv1.Control) bool { return false }); reason(err) != "DISCONNECTED" {
		t.Error(err)
	}
	next(50, 60) // the SDK has come back and missed nothing
	info, err := c.admin.GetServerInfo(t.Context(), &runnelv1.GetServerInfoRequest{})
	if err != nil || info.GetVersion() != "v9" || info.GetPublished() != 60 || info.GetDelivered() < 63 || info.GetTrouble() != "" || info.GetAuthenticates() || info.GetMemoryUsedBytes() == 0 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "quiet.b"}); err != nil {
		t.Fatal(err)
	}
	spaces, err := c.admin.ListNamespaces(t.Context(), &runnelv1.ListNamespacesRequest{})
	if err != nil || len(spaces.GetNamespaces()) != 2 {
		t.Fatalf("%v, %v", spaces, err)
	}
	if a, q := spaces.GetNamespaces()[0], spaces.GetNamespaces()[1]; a.GetNewestOffset() != 60 || a.GetBytes() < 60*20 || a.GetBytes() > 60*500 || a.GetOldestOffset() != 1 || !a.GetHistory() || q.GetHistory() || q.GetOldestOffset() != 0 {
		t.Errorf("%v", spaces)
	}
	if r, err := c.admin.TrimNamespace(t.Context(), &runnelv1.TrimNamespaceRequest{Namespace: "a", UpToOffset: 55}); err != nil || r.GetOldestOffset() != 56 {
		t.Errorf("%v, %v", r, err)
	}
	left := 0
	for _, err := range reader.History(t.Context(), "a.b") {
		if left++; err != nil {
			t.Error(err)
		}
	}
	if left != 5 {
		t.Errorf("%d events are left", left)
	}
	for namespace, want := range map[string]string{"quiet": "NO_HISTORY", "nowhere": "UNKNOWN_NAMESPACE", "a.b": "UNKNOWN_NAMESPACE"} {
		if _, err := c.admin.TrimNamespace(t.Context(), &runnelv1.TrimNamespaceRequest{Namespace: namespace, UpToOffset: 1}); reason(err) != want {
			t.Errorf("%s: %v", namespace, err)
		}
	}
	if r, err := c.admin.Reload(t.Context(), &runnelv1.ReloadRequest{}); err != nil || !slices.Equal(r.GetRestart(), []string{"drain_timeout", "elsewhere"}) {
		t.Errorf("%v, %v", r, err)
	}
	wrong = errors.New("runnel.yaml:3: that is wrong")
	if _, err := c.admin.Reload(t.Context(), &runnelv1.ReloadRequest{}); reason(err) != "NOT_RELOADED" {
		t.Error(err)
	}
	if text, err := c.admin.GetConfiguration(t.Context(), &runnelv1.GetConfigurationRequest{}); err != nil || text.GetText() != "listen: x\n" {
		t.Errorf("%v, %v", text, err)
	}
	if _, err := c.admin.Drain(t.Context(), &runnelv1.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := running.Wait(); err != nil {
		t.Errorf("after Drain: %v", err)
	}
	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := runnelv1.NewStreamServiceClient(conn).GetTopic(ctx, &runnelv1.GetTopicRequest{Topic: "a.b"}); err == nil {
		t.Error("the server still answers")
	}
}
