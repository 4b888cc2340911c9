package prometheus_test

import (
	"fmt"
	"testing"

	prom "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/prometheus"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

func ExampleNewCollector() {
	client, err := runnel.Dial("127.0.0.1:50051")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	registry := prom.NewRegistry()
	registry.MustRegister(prometheus.NewCollector(client))
	families, err := registry.Gather()
	fmt.Println(families[0].GetName(), err)
	// Output: runnel_client_calls_total <nil>
}

// What a client does shows in its metrics, which are named and described as metrics should be.
func TestCollector(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
	client, err := runnel.Dial(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	session, err := client.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := session.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"a.b", "a.b", "nowhere.x"} {
		if _, err := client.Publish(t.Context(), topic, nil, runnel.ID("same")); (err != nil) != (topic == "nowhere.x") {
			t.Fatal(topic, err)
		}
	}
	if _, err := sub.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := prometheus.NewCollector(client)
	for name, want := range map[string]float64{
		"connections": 1, "unacknowledged_events": 0, "unacknowledged_bytes": 0, "streams_opened_total": 1, "streams_broken_total": 0, "streams_moved_total": 0,
		"calls_total": 3, "retries_total": 0, "retries_denied_total": 0, "rejected_total": 0, "published_total": 2, "publish_duplicates_total": 1,
		"publish_failed_total": 1, "received_total": 1, "dropped_total": 0, "conflated_total": 0, "gaps_total": 0,
	} {
		if got := value(t, c, "runnel_client_"+name, ""); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if connecting, live := value(t, c, "runnel_client_sessions", "connecting"), value(t, c, "runnel_client_sessions", "live"); connecting != 0 || live != 1 {
		t.Errorf("%v sessions are connecting, %v live", connecting, live)
	}
	session.Close()
	client.Close()
	if live := value(t, c, "runnel_client_sessions", "live"); live != 0 {
		t.Errorf("%v sessions are live after the end", live)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func value(t *testing.T, c prom.Collector, name, state string) float64 {
	t.Helper()
	registry := prom.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != name || state != "" && m.GetLabel()[0].GetValue() != state {
				continue
			}
			if m.GetCounter() != nil {
				return m.GetCounter().GetValue()
			}
			return m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s %s", name, state)
	return 0
}
