package e2e

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// TestCluster kills one server after the other of three that share a NATS cluster, under publishers and followers that go wherever there is
// one: the same is true as when a server stands alone, though nobody waits for the one that was killed. A server that was killed starts again
// under its node id. RUNNEL_CRASH=1: 100 kills, of three NATS servers too, else 2 of the servers alone.
func TestCluster(t *testing.T) {
	t.Parallel()
	kills, size := 2, 1
	if os.Getenv("RUNNEL_CRASH") != "" {
		kills, size = 100, 3
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d kills, seed %d", kills, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	cluster := natstest.New(t, size)
	command := binary(t)
	var servers []*process
	var addresses []string
	for _, node := range []string{"a", "b", "c"} {
		p := &process{t: t, binary: command, addr: freeAddress(t), data: t.TempDir(), env: append(onNATS(cluster), "RUNNEL_NODE="+node)}
		p.start()
		t.Cleanup(func() { p.kill() })
		servers, addresses = append(servers, p), append(addresses, p.addr)
	}
	all := strings.Join(addresses, ",")

	l := newLedger(true)
	finish := l.load(t, all)
	for n := range kills {
		l.awaitProgress(t)
		time.Sleep(time.Duration(50+rng.IntN(400)) * time.Millisecond) // the moment of the kill is what is random here
		if size > 1 && n%3 == 2 {
			i := rng.IntN(size)
			cluster.Stop(i)
			cluster.Start(i)
			cluster.WaitReady()
			cluster.WaitHealthy()
			continue
		}
		p := servers[n%len(servers)]
		p.kill()
		l.awaitProgress(t) // without it
		p.start()
	}
	finish()
}
