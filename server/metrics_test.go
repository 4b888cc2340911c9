package server_test

import (
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// The metrics say what has happened. Those of storage are the embedded engine's.
func TestMetrics(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{
		Engine: server.Embedded, Admin: "127.0.0.1:0", Namespaces: map[string]server.Namespace{"a": {}, "m": {History: "memory", PublishRate: 3}},
	})
	value := func(name string) float64 {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(get(t, "http://"+s.AdminAddr+"/metrics"))
		if m == nil {
			return -1
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	client, err := runnel.Dial(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	live, err := client.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := client.Publish(t.Context(), "a.b", make([]byte, 1000), runnel.ID(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
		if _, err := live.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Publish(t.Context(), "a.b", nil, runnel.ID("9")); err != nil {
		t.Fatal(err)
	}
	old, err := client.Subscribe(t.Context(), "a.b", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := old.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c := newClients(t, s.Addr)
	_ = calls[0].do(t.Context(), c, "a..b") // counted, whatever the answer
	for range 12 {
		_ = calls[0].do(t.Context(), c, "m.b")
	}
	for name, want := range map[string]float64{
		`runnel_publishes_total{result="duplicate"}`:                        1,
		`runnel_publishes_total{result="invalid"}`:                          1,
		`runnel_deliveries_total`:                                           20,
		`runnel_replayed_total`:                                             10,
		`runnel_sessions`:                                                   2,
		`runnel_subscriptions`:                                              2,
		`runnel_lag_events`:                                                 0,
		`runnel_lag_events_max`:                                             0,
		`runnel_subscriptions_behind`:                                       0,
		`runnel_dropped_total`:                                              0,
		`runnel_commit_delay_seconds_count{durability="disk"}`:              11,
		`runnel_delivery_delay_seconds_count`:                               10,
		`runnel_namespaces`:                                                 2,
		`runnel_storage_failed`:                                             0,
		`grpc_stream_messages_received_total{type="subscribe"}`:             2,
		`grpc_stream_messages_received_total{type="publish"}`:               24,
		`grpc_stream_active_connections{service="runnel.v1.StreamService"}`: 2,
	} {
		if got := value(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	// On a slow machine a limit earns more while it is used.
	accepted, limited := value(`runnel_publishes_total{result="accepted"}`), value(`runnel_publishes_total{result="limited"}`)
	if accepted+limited != 22 || limited < 1 || value(`runnel_limited_total{limit="namespace_events"}`) != limited {
		t.Errorf("%v accepted, %v limited", accepted, limited)
	}
	if n := value(`runnel_commit_delay_seconds_count{durability="memory"}`); n != accepted-10 {
		t.Errorf("%v commits in memory", n)
	}
	for _, name := range []string{
		`runnel_sent_bytes_total{rpc="session"}`, `runnel_sent_messages_total{rpc="session"}`, `runnel_sent_messages_total{rpc="publish"}`, `runnel_received_bytes_total{type="publish"}`, `runnel_memory_used_bytes{kind="sessions"}`,
		"runnel_memory_limit_bytes", "runnel_storage_disk_bytes", "runnel_storage_free_bytes", "runnel_storage_wal_written_bytes_total", "go_goroutines",
	} {
		if value(name) <= 0 {
			t.Errorf("%s is %v", name, value(name))
		}
	}
	live.Close()
	old.Close()
	for deadline := time.Now().Add(10 * time.Second); value("runnel_sessions") != 0 || value("runnel_subscriptions") != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("sessions that are over still count")
		}
	}
}
