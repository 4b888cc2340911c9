package etcdtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The command: servers list themselves, clients find them by the name of the service, and a server that is stopped is off the list before it
// ends.
func TestCommand(t *testing.T) {
	t.Parallel()
	runnel := filepath.Join(t.TempDir(), "runnel")
	build := exec.Command("go", "build", "-o", runnel, "./cmd/runnel")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := newCluster(t)
	seen := resolve(t, c.client(), "quotes")
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), runnel, args...)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "RUNNEL_ETCD="+c.addr(), "RUNNEL_DISCOVERY_ETCD_ENDPOINTS="+c.addr(), "RUNNEL_DISCOVERY_ETCD_SERVICE=quotes")
		return cmd
	}
	var servers []*exec.Cmd
	var logs [2]bytes.Buffer
	for i := range logs {
		s := command("serve", "--dev", "--listen", "127.0.0.1:0", "--admin", "off", "--drain-spread", "10ms")
		s.Stderr = &logs[i]
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
	}
	addresses := seen.waitFor(t, 2)
	for i, s := range servers {
		if out, err := command("pub", "a.b", "x", "--server", "etcd:///quotes", "--balancing", "round-robin").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if err := s.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := s.Wait(); err != nil {
			t.Errorf("%v: %s", err, &logs[i])
		}
		res, err := c.client().Get(t.Context(), "/runnel/services/quotes/", prefix)
		if err != nil || int(res.Count) != len(servers)-1-i {
			t.Errorf("%d servers are listed: %v", res.Count, err)
		}
	}
	out, err := command("pub", "a.b", "x", "--server", "etcd:///quotes").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no server is listed in etcd under /runnel/services/quotes") {
		t.Errorf("%v: %s, after %v", err, out, addresses)
	}
}
