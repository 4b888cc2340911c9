package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// someNodes are n nodes with names as long as they may be, of which the second is asked.
func someNodes(n int) *runnelv1.ListNodesResponse {
	now := time.Now()
	r := &runnelv1.ListNodesResponse{NowMs: now.UnixMilli()}
	for i := range n {
		r.Nodes = append(r.Nodes, &runnelv1.NodeInfo{
			Node: fmt.Sprintf("%02d-%s", i, strings.Repeat("n", 61)), Address: fmt.Sprintf("node-%02d.%s:50051", i, strings.Repeat("x", 60)), Version: "v0.0.0-20261121140218-abcdef",
			StartedMs: now.Add(-49 * time.Hour).UnixMilli(), Sessions: 100_000, PublishedPerS: 123_456, DeliveredPerS: 1_234_567, Load: 0.876, HeardMs: now.UnixMilli(), Self: i == 1,
		})
	}
	return r
}

// The nodes fit the smallest terminal, the one that is asked is marked, and what is wrong with one shows.
func TestTopNodes(t *testing.T) {
	m := newTop("127.0.0.1:1", nil, time.Second)
	l := aLook(1, 1000)
	l.nodes = someNodes(40)
	nodes := l.nodes.GetNodes()
	nodes[0].Draining, nodes[2].Trouble, nodes[3].HeardMs = true, true, l.nodes.GetNowMs()-6000
	nodes[4].Address, nodes[4].Host = "", "machine-4:50051"
	m.take(l)
	if text := shown(t, m); !strings.Contains(text, "one of 40 nodes") {
		t.Errorf("sessions:\n%s", text)
	}
	press(m, char('n'))
	text := shown(t, m)
	for _, want := range []string{"40 nodes, together 4000000 sessions, 4.9M events/s in, 49.4M out", "draining", "trouble", "silent 6s", "(machine-4:50051)", "88%", "2d", "00-nnnnnnnnn…", "v0.0.0-…", "node-00.xxxxxx"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	l.nodes.Stale = true
	if text := shown(t, m); !strings.Contains(text, "does not hear the others") {
		t.Errorf("stale:\n%s", text)
	}
	press(m, char('N'))
	if text := shown(t, m); !strings.Contains(text, "2 namespaces, busiest first") {
		t.Errorf("namespaces:\n%s", text)
	}
	l.nodes = someNodes(1)
	m.take(l)
	press(m, char('s'))
	if text := shown(t, m); strings.Contains(text, "node") && strings.Contains(text, "one of") {
		t.Errorf("alone:\n%s", text)
	}
}
