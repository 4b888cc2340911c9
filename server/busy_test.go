package server_test

import (
	"fmt"
	"testing"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// What an operator is told of topics: the busiest first, what is stored and nothing else, and what is retained of each.
func TestBusyTopics(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}, "b": {History: "none"}},
	})
	c := newClients(t, s.Addr)
	list := func(r *runnelv1.ListBusyTopicsRequest) *runnelv1.ListBusyTopicsResponse {
		t.Helper()
		l, err := c.admin.ListBusyTopics(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := list(&runnelv1.ListBusyTopicsRequest{}); l.GetMatched() != 0 || len(l.GetTopics()) != 0 {
		t.Errorf("before any event: %v", l)
	}
	publish := func(topic string, events, bytes int) {
		t.Helper()
		for i := range events {
			r := &runnelv1.PublishRequest{Topic: topic, Payload: make([]byte, bytes), EventId: fmt.Sprint(topic, i)}
			if _, err := c.Publish(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish("a.many", 200, 10)
	publish("a.large", 3, 100_000)
	publish("b.some", 50, 10)
	publish("a.large", 3, 100_000) // duplicates
	if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.refused", ExpectedOffset: new(uint64(7))}); reason(err) != "OFFSET_CONFLICT" {
		t.Error(err)
	}
	l := list(&runnelv1.ListBusyTopicsRequest{})
	if l.GetMatched() != 3 || len(l.GetTopics()) != 3 {
		t.Fatal(l)
	}
	many, some, large := l.GetTopics()[0], l.GetTopics()[1], l.GetTopics()[2]
	if many.GetTopic() != "a.many" || some.GetTopic() != "b.some" || large.GetTopic() != "a.large" {
		t.Fatal(l)
	}
	// Right after n events the rate over about 10 s is a fifth of n; a machine that is slow makes it less.
	for _, r := range []struct {
		t      *runnelv1.BusyTopic
		events float64
	}{{many, 200}, {some, 50}, {large, 3}} {
		if got, most := r.t.GetEventsPerS(), r.events/5; got > most || got < most/10 || r.t.GetMissedEventsPerS() != 0 || r.t.GetMissedBytesPerS() != 0 {
			t.Errorf("%v, want about %v events", r.t, most)
		}
	}
	if size := large.GetBytesPerS() / large.GetEventsPerS(); size < 100_000 || size > 100_200 {
		t.Errorf("an event of %v bytes", size)
	}
	if many.GetOldestOffset() != 1 || many.GetNewestOffset() != 200 || many.GetNewestBytes() < 20 || many.GetNewestBytes() > 200 ||
		large.GetOldestOffset() != 201 || large.GetNewestOffset() != 203 || large.GetNewestBytes() < 100_000 ||
		some.GetOldestOffset() != 0 || some.GetNewestOffset() != 0 || some.GetNewestBytes() != 0 {
		t.Errorf("%v", l)
	}
	if l := list(&runnelv1.ListBusyTopicsRequest{Order: runnelv1.BusyTopicOrder_BUSY_TOPIC_ORDER_BYTES, Limit: 1}); l.GetMatched() != 3 || len(l.GetTopics()) != 1 || l.GetTopics()[0].GetTopic() != "a.large" {
		t.Errorf("by bytes: %v", l)
	}
	for pattern, want := range map[string]uint32{"a.>": 2, "a.many": 1, "*.many": 0, "b.*": 1, "b": 0} {
		l, err := c.admin.ListBusyTopics(t.Context(), &runnelv1.ListBusyTopicsRequest{Pattern: pattern})
		if pattern[0] == '*' {
			if reason(err) != "INVALID_FIELD" {
				t.Errorf("%s: %v", pattern, err)
			}
		} else if err != nil || l.GetMatched() != want {
			t.Errorf("%s: %v, %v", pattern, l, err)
		}
	}
	if _, err := c.admin.ListBusyTopics(t.Context(), &runnelv1.ListBusyTopicsRequest{Order: 9}); reason(err) != "INVALID_FIELD" {
		t.Error(err)
	}
	// To look at a topic does not bring its namespace back.
	if _, err := c.admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); err != nil {
		t.Fatal(err)
	}
	if l := list(&runnelv1.ListBusyTopicsRequest{Pattern: "a.many"}); len(l.GetTopics()) != 1 || l.GetTopics()[0].GetNewestOffset() != 0 {
		t.Errorf("%v", l)
	}
	if res, err := c.admin.ListNamespaces(t.Context(), &runnelv1.ListNamespacesRequest{}); err != nil || len(res.GetNamespaces()) != 1 {
		t.Errorf("%v, %v", res, err)
	}
}
