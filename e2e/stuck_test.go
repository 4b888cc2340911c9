package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gauge reads a metric without labels.
func gauge(t *testing.T, admin, name string) string {
	t.Helper()
	r, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("there is no metric %s", name)
	return ""
}

// TestStuckClient stops a subscriber's process, as a debugger or a laptop's lid does: metrics say that a client is stuck, the list of
// sessions and the dashboard say which, and it gets everything when it goes on.
func TestStuckClient(t *testing.T) {
	t.Parallel()
	p := &process{t: t, binary: binary(t), addr: freeAddress(t), admin: freeAddress(t), data: t.TempDir()}
	p.start()
	t.Cleanup(func() { p.kill() })
	client, err := dial(p.addr, "source")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const events = 5000
	if _, err := client.Publish(t.Context(), "load.a", []byte("0")); err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, p.binary, append(args, "--server", p.addr)...)
		c.Stderr = t.Output()
		return c
	}
	var got bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sub := run(ctx, "sub", "load.>", "--from", "earliest", "--count", fmt.Sprint(events))
	sub.Stdout = &got
	other := run(ctx, "sub", "load.>", "--from", "earliest", "--count", fmt.Sprint(events))
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	await := func(what string, done func() bool) {
		t.Helper()
		for ; !done(); time.Sleep(50 * time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatal(what, "did not come true")
			}
		}
	}
	await("two sessions", func() bool { return gauge(t, p.admin, "runnel_deliveries_total") == "2" })
	if err := sub.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pub, err := client.Publisher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range events - 1 {
		if _, err := pub.Publish(t.Context(), "load.a", []byte(fmt.Sprint(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := pub.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.Wait(); err != nil {
		t.Errorf("the client that reads: %v", err)
	}
	await("a stuck session in the metrics", func() bool { return gauge(t, p.admin, "runnel_sessions_stuck") == "1" })
	out, err := run(ctx, "admin", "sessions", "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := bytes.Cut(out, []byte("\n"))
	var session struct {
		SessionID, Lag, BlockedMs string
	}
	if err := json.Unmarshal(first, &session); err != nil || session.Lag == "0" || session.BlockedMs == "0" {
		t.Errorf("the first of the sessions is %s (%v)", first, err)
	}
	if out, err = run(ctx, "top").Output(); err != nil {
		t.Fatal(err)
	}
	named := ""
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "stuck") {
			named = line
		}
	}
	if !strings.HasPrefix(named, session.SessionID) {
		t.Errorf("top says that this is stuck: %q, not %s\n%s", named, session.SessionID, out)
	}
	if err := sub.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := sub.Wait(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(got.String()) {
		if !strings.HasSuffix(strings.TrimSpace(line), fmt.Sprint(n)) {
			t.Fatalf("event %d is %q", n, line)
		}
		n++
	}
	if n != events {
		t.Errorf("%d of %d events", n, events)
	}
	if v := gauge(t, p.admin, "runnel_sessions_stuck"); v != "0" {
		t.Errorf("%s sessions are stuck", v)
	}
}
