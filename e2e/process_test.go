// Package e2e runs the real binary from outside.
package e2e

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/port"
)

// binary builds the command.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runnel")
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/runnel").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// freeAddress is a loopback address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	ports, err := port.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// onEngines runs a test on the embedded engine and on NATS, at the same time; settings are the environment of servers that keep their events there, apart from
// those of other tests.
func onEngines(t *testing.T, test func(t *testing.T, settings []string)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, nil)
	})
	t.Run("nats", func(t *testing.T) {
		t.Parallel()
		test(t, onNATS(natstest.New(t, 1)))
	})
}

// onNATS is the environment of servers on that cluster.
func onNATS(c *natstest.Cluster) []string {
	return []string{"RUNNEL_ENGINE=nats", "RUNNEL_NATS_URLS=" + strings.Join(c.URLs(), ","), fmt.Sprint("RUNNEL_NATS_REPLICAS=", c.Size())}
}

// elsewhere is the environment of a server whose test does not say where it keeps its events: none, or that of the NATS servers in RUNNEL_TEST_NATS,
// under a prefix of its own.
func elsewhere() []string {
	urls := os.Getenv("RUNNEL_TEST_NATS")
	if urls == "" {
		return nil
	}
	return []string{"RUNNEL_ENGINE=nats", "RUNNEL_NATS_URLS=" + urls, "RUNNEL_NATS_REPLICAS=1", fmt.Sprintf("RUNNEL_NATS_PREFIX=e2e%08x", rand.Uint32()),
		"RUNNEL_LIMITS_MAX_PAYLOAD_BYTES=1MiB"} // as elsewhere: the server must take it
}

// process is a server process that can be killed and started again on its data.
type process struct {
	t            *testing.T
	binary, addr string
	data         string
	admin        string    // address of the admin listener; empty: off
	env          []string  // settings
	log          io.Writer // also gets what the server logs; may be nil
	cmd          *exec.Cmd
}

func (p *process) start() {
	if !slices.Contains(p.env, "RUNNEL_ENGINE=nats") {
		p.env = append(p.env, elsewhere()...)
	}
	p.cmd = exec.Command(p.binary, "serve", "--dev", "--listen", p.addr, "--admin", cmp.Or(p.admin, "off"), "--data", p.data, "--log-level", "warn")
	// The test's own variables are no configuration.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "RUNNEL_") })
	p.cmd.Env = append(p.cmd.Env, p.env...)
	p.cmd.Stderr = p.t.Output()
	if p.log != nil {
		p.cmd.Stderr = io.MultiWriter(p.t.Output(), p.log)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait() // says that it was killed
}
