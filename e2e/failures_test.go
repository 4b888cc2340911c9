package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// localCluster runs deploy/local-cluster.
type localCluster struct {
	t   *testing.T
	env []string
}

func (c *localCluster) run(args ...string) (out string) {
	c.t.Helper()
	cmd := exec.Command("../deploy/local-cluster/local-cluster", args...)
	cmd.Env = append(os.Environ(), c.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("local-cluster %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(b)
}

// TestFailures ends the processes of a cluster of three nodes on three NATS servers, one by one and together, under eight publishers and eight
// followers, and says how long these have waited each time. Nothing that was acknowledged is lost, and nobody gets anything twice. It takes
// minutes, so RUNNEL_FAILURES=1 asks for it; TestCluster is what always runs.
func TestFailures(t *testing.T) {
	if os.Getenv("RUNNEL_FAILURES") == "" {
		t.Skip("RUNNEL_FAILURES is not set")
	}
	c := &localCluster{t: t, env: []string{"LOCAL_CLUSTER_DIR=" + t.TempDir() + "/cluster", "LOCAL_CLUSTER_PORT=26000"}}
	t.Cleanup(func() { c.run("down") })
	line, _, _ := strings.Cut(c.run("up"), "\n")
	all := strings.ReplaceAll(strings.TrimPrefix(line, "Runnel: "), " ", ",")

	l := newLedger(true)
	finish := l.load(t, all)
	const settle = 10 * time.Second // leaders are elected, nodes hear of each other, clients go where they go
	l.awaitProgress(t)
	var table strings.Builder
	measure := func(what string, act func()) {
		t.Helper()
		l.mark()
		act()
		l.awaitProgress(t)
		time.Sleep(settle)
		l.awaitProgress(t)
		p, f := l.waits()
		fmt.Fprintf(&table, "| %s | %.1f s | %.1f s |\n", what, p.Seconds(), f.Seconds())
		t.Logf("%s: publishers have waited %v, followers %v", what, p, f)
	}
	measure("nothing", func() {})
	for _, name := range []string{"runnel1", "runnel2", "runnel3"} {
		measure("a node is killed", func() { c.run("kill", name) })
		measure("and is back", func() { c.run("start", name) })
	}
	measure("a node is stopped", func() { c.run("stop", "runnel1") })
	measure("and is back", func() { c.run("start", "runnel1") })
	for _, name := range []string{"nats1", "nats2", "nats3"} {
		measure("a NATS server is killed", func() { c.run("kill", name) })
		measure("and is back", func() { c.run("start", name) })
	}
	measure("two NATS servers are killed, and are back after 10 s", func() {
		c.run("kill", "nats1", "nats2")
		time.Sleep(10 * time.Second)
		c.run("start", "nats1", "nats2")
	})
	measure("all NATS servers are killed and started", func() {
		c.run("kill", "nats1", "nats2", "nats3")
		c.run("start", "nats1", "nats2", "nats3")
	})
	measure("all nodes are killed and started", func() {
		c.run("kill", "runnel1", "runnel2", "runnel3")
		c.run("start", "runnel1", "runnel2", "runnel3")
	})
	finish()
	t.Log("\n" + table.String())
}
