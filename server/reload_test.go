package server_test

import (
	"slices"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/server"
)

// What is configured about namespaces may change while the server runs, but for what their events depend on: that is named.
func TestReloadNamespaces(t *testing.T) {
	t.Parallel()
	cfg := server.Config{
		Listen: "127.0.0.1:0", Admin: "off", Data: t.TempDir(), Defaults: server.Namespace{History: "memory"}, Dev: true,
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}, "gone": {History: "memory"}, "kept": {History: "memory"}},
	}
	s := run(t, cfg)
	c := newClients(t, s.Addr().String())
	publish := func(topic string) *runnelv1.PublishResponse {
		t.Helper()
		res, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: topic})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for range 100 {
		publish("a.b")
	}
	publish("open.b")
	next := cfg
	next.Dev = false
	next.Defaults.History = "none"
	next.Namespaces = map[string]server.Namespace{
		"a": {History: "memory", MaxEvents: 10, Overflow: "conflate"}, "kept": {History: "none"}, "new": {History: "none"}, "open": {History: "disk"},
	}
	restart, err := s.Reload(next)
	if want := []string{"dev", "defaults.history", "namespaces.gone", "namespaces.kept.history", "namespaces.new.history", "namespaces.open.history"}; err != nil || !slices.Equal(restart, want) {
		t.Errorf("%q, %v", restart, err)
	}
	oldest := func() uint64 {
		t.Helper()
		res, err := c.GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.b"})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetOldestOffset()
	}
	for deadline := time.Now().Add(30 * time.Second); oldest() != 91; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the oldest is %d", oldest())
		}
	}
	for _, name := range []string{"gone", "kept", "new", "open"} {
		if res := publish(name + ".b"); res.GetDurability() != runnelv1.Durability_DURABILITY_MEMORY {
			t.Errorf("%s: %v", name, res.GetDurability())
		}
	}
	stream, err := c.EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, stream, 1, "a.>")
	list, err := c.admin.ListSessions(t.Context(), &runnelv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	one, err := c.admin.GetSession(t.Context(), &runnelv1.GetSessionRequest{SessionId: list.GetSessions()[0].GetSessionId()})
	if err != nil || one.GetSubscriptions()[0].GetOverflow() != runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE {
		t.Errorf("%v, %v", one, err)
	}
	if restart, err := s.Reload(cfg); err != nil || !slices.Equal(restart, []string{"namespaces.new", "namespaces.open"}) {
		t.Errorf("back: %q, %v", restart, err)
	}
}
