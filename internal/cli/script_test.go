package cli

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"

	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// The scripts run the real command, in processes of its own, against servers of this process: RUNNEL_SERVER takes anything,
// STRICT has one namespace, kept, and small limits, OTHER is a gRPC server of another kind, and LOCKED is free.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: func(env *testscript.Env) error { return setUp(t, env) },
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"usage": fails(2), "failure": fails(1)},
	})
}

func setUp(t *testing.T, env *testscript.Env) error {
	open := runneltest.StartServer(t, server.Config{})
	strict := runneltest.StartServer(t, server.Config{
		Limits: server.Limits{MaxPayloadBytes: 1000}, Namespaces: map[string]server.Namespace{"kept": {}},
	})
	env.Vars = append(env.Vars, "RUNNEL_SERVER="+open.Addr, "STRICT="+strict.Addr, "OTHER="+otherServer(t), "LOCKED="+unusedAddress(t))
	line := func(n int) string { return strings.Repeat("x", n) }
	return errors.Join(
		os.WriteFile(env.WorkDir+"/large", []byte(line(2000)), 0o600),
		os.WriteFile(env.WorkDir+"/verylarge", []byte(line(1<<20)), 0o600),
		os.WriteFile(env.WorkDir+"/mixed", []byte("one\ntwo\n"+line(1001)+"\nthree\n"), 0o600),
		os.WriteFile(env.WorkDir+"/large.csv", []byte("text\none\n"+line(1001)+"\ntwo\n"), 0o600),
	)
}

// unusedAddress is one that nobody listens on, for a server that a script starts.
func unusedAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// otherServer is a gRPC server without Runnel's service.
func otherServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
	return l.Addr().String()
}

// fails is the script command NAME REGEXP COMMAND...: the command must end with that exit code, and with one line on stderr that
// begins with "runnel: " and matches.
func fails(code int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < 2 {
			ts.Fatalf("usage: usage|failure REGEXP COMMAND...")
		}
		err := ts.Exec(args[1], args[2:]...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != code {
			ts.Fatalf("%v, want exit code %d", err, code)
		}
		text := ts.ReadFile("stderr")
		if !regexp.MustCompile(`^runnel: [^\n]*` + "(" + args[0] + ")" + `[^\n]*\n$`).MatchString(text) {
			ts.Fatalf("stderr is %q, want one line that matches %q", text, args[0])
		}
	}
}
