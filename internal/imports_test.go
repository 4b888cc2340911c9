// Package internal_test holds the checks that keep the house in order: who may import whom (this file), and how large a file
// may be and where goroutines start (house_test.go).
package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A room is one of our packages and what it may import of ours; all else of ours is forbidden to it, for the reason given.
// Every package has a room: a new one is entered here first, with its reason. "." is the root, the SDK.
type room struct{ pkg, may, because string }

var rooms = []room{
	{".", "api/runnel/v1 internal/compress internal/id",
		"who imports the SDK must not link the server, and the SDK must work against any server, so it knows only the wire contract"},
	{"api/runnel/v1", "",
		"generated code stands alone"},
	{"internal", "",
		"it holds nothing but these checks"},
	{"internal/topic", "",
		"what a name is depends on nothing else, or there would be a second opinion"},
	{"internal/wire", "api/runnel/v1 internal/topic",
		"it encodes; it knows neither who stores nor who sends the bytes"},
	{"internal/engine", "api/runnel/v1 internal/topic internal/wire",
		"a contract that knew its users or its implementations would bend to them"},
	{"internal/history", "api/runnel/v1 internal/topic",
		"the judge of every fault test must not share a mistake with what it judges"},
	{"internal/engine/enginetest", "api/runnel/v1 internal/topic internal/wire internal/engine internal/history",
		"one suite for every engine: it sees only the contract"},
	{"internal/ring", "internal/engine",
		"recent events are the same for every engine"},
	{"internal/opens", "internal/engine internal/topic",
		"how logs are opened and deleted in turn is the same for every engine"},
	{"internal/pebbleengine", "api/runnel/v1 internal/topic internal/wire internal/engine internal/opens internal/ring",
		"an engine stores; it must not know who reads, or a reader could slow a publisher down"},
	{"internal/natsengine", "api/runnel/v1 internal/topic internal/wire internal/engine internal/opens internal/ring",
		"an engine stores; it must not know who reads, or a reader could slow a publisher down"},
	{"internal/port", "",
		"a port is a number"},
	{"internal/waits", "",
		"how many tests run at once depends on no test"},
	{"internal/natsengine/natstest", "internal/port",
		"it runs NATS servers for tests, whatever they test"},
	{"internal/cluster", "",
		"it knows who is there; how messages go between nodes, and who wants to know, is somebody else's"},
	{"internal/id", "",
		"an id is an id, whoever makes it"},
	{"internal/compress", "",
		"it gives gRPC its coders, at both ends"},
	{"internal/budget", "",
		"it counts bytes for whoever holds them"},
	{"internal/busy", "internal/topic",
		"it counts what it is told, by topic; what an event is, and who asks, is somebody else's"},
	{"internal/hub", "api/runnel/v1 internal/budget internal/topic internal/wire internal/engine",
		"a feed serves any follower: it knows no session, rule or transport, and any engine feeds it"},
	{"internal/auth", "internal/topic",
		"who a client is and what it may do depends on names alone; who asks, and how, is somebody else's"},
	{"internal/telemetry", "api/runnel/v1",
		"it sends what others have measured"},
	{"otel", ".",
		"who traces links OpenTelemetry; who does not, does not"},
	{"prometheus", ".",
		"who counts with Prometheus links it; who does not, does not"},
	{"internal/certs", "",
		"certificates are files"},
	{"internal/limit", "",
		"it counts for whoever asks"},
	{"internal/audit", "",
		"it writes lines; what they say comes from those who know"},
	{"internal/session", "api/runnel/v1 internal/budget internal/topic internal/wire internal/engine internal/hub",
		"a session is pulled by whatever edge there is: gRPC today, others later"},
	{"internal/broker", "api/runnel/v1 internal/topic internal/wire internal/engine internal/hub internal/id internal/session internal/auth internal/limit internal/busy",
		"the rules hold for every engine and every edge, so they know neither"},
	{"internal/grpcapi", "api/runnel/v1 internal/budget internal/topic internal/wire internal/engine internal/session internal/broker internal/auth internal/limit internal/audit",
		"the edge decodes, calls the rules and encodes; around the rules, to the hub or an engine, there is no way"},
	{"internal/admin", "api/runnel/v1 internal/auth internal/audit internal/topic",
		"health, metrics and what operators may act upon are handed to it as values and functions"},
	{"server", "api/runnel/v1 internal/budget internal/compress internal/topic internal/wire internal/engine internal/hub internal/session internal/broker internal/grpcapi internal/pebbleengine internal/natsengine internal/cluster internal/admin internal/auth internal/certs internal/limit internal/audit internal/telemetry internal/busy",
		"it wires the parts; a command line or a configuration file is one way to call it, not something it needs"},
	{"internal/logs", "",
		"it passes lines on"},
	{"internal/config", "server internal/audit internal/logs internal/topic",
		"it turns files, environment and flags into a server.Config, and starts nothing"},
	{"discovery/etcd", "",
		"whoever finds servers through etcd links its client; it serves any gRPC, and knows nothing of ours"},
	{"internal/load", ". api/runnel/v1 internal/compress",
		"it measures any server from outside, so it knows only what clients know"},
	{"internal/cli", ". api/runnel/v1 discovery/etcd server internal/config internal/load internal/topic",
		"the commands use the SDK like anybody else, so that what they can do, everybody can"},
	{"cmd/runnel", "internal/cli",
		"main is three lines"},
	{"runneltest", ". api/runnel/v1 server",
		"a user's test gets what a user gets"},
	{"e2e", ". api/runnel/v1 server runneltest",
		"from outside means from outside"},
}

// A ban keeps packages of others out of all of ours except those named. A package ending in /... stands for all below it.
type ban struct {
	never   string // what must not be imported
	but     string // our packages that may
	through bool   // forbidden also through what is imported, not only directly
	because string
}

var bans = []ban{
	{never: "github.com/cockroachdb/pebble/v2/...", but: "internal/pebbleengine",
		because: "one package knows how events are stored"},
	{never: "github.com/nats-io/nats.go/...", but: "internal/natsengine",
		because: "one package knows how events are stored on NATS"},
	{never: "github.com/nats-io/nats-server/v2/...", but: "internal/natsengine/natstest",
		because: "the cluster is somebody else's process; only tests run servers themselves"},
	{never: "internal/natsengine/natstest internal/port internal/waits", but: "internal/natsengine/natstest internal/port internal/waits",
		because: "test tools have no place in the product"},
	{never: "google.golang.org/grpc/...", but: ". api/runnel/v1 discovery/etcd internal/compress internal/grpcapi internal/admin internal/load server internal/cli runneltest e2e",
		because: "the core knows no transport: only the edges and who wires them do"},
	{never: "net/http/...", but: "internal/admin internal/auth internal/cli e2e",
		because: "the admin listener is the only HTTP that is served; keys of issuers are fetched"},
	{never: "go.opentelemetry.io/...", but: "internal/telemetry otel",
		because: "traces are an option: where they are off, nothing knows of them"},
	{never: "github.com/prometheus/...", but: "internal/admin internal/telemetry server prometheus",
		because: "what is counted is counted in plain variables; one package shows them"},
	{never: "github.com/spf13/cobra/...", but: "internal/cli",
		because: "only the command line is a command line"},
	{never: "github.com/spf13/pflag/...", but: "internal/cli internal/config",
		because: "flags are read at the rim"},
	{never: "go.yaml.in/yaml/...", but: "internal/config",
		because: "everything behind the configuration takes a checked struct"},
	{never: "charm.land/... github.com/charmbracelet/...", but: "internal/cli",
		because: "only the command line draws"},
	{never: "github.com/shirou/gopsutil/...", but: "internal/cli",
		because: "the figures of this machine are the demonstration's data, not the server's"},
	{never: "testing pgregory.net/rapid/... go.uber.org/goleak/... github.com/rogpeppe/go-internal/... github.com/google/go-cmp/... github.com/anishathalye/porcupine/...",
		but:     "internal/engine/enginetest runneltest e2e",
		because: "test tools have no place in the product; these packages exist for tests"},
	{never: "go.etcd.io/... discovery/...", but: "discovery/etcd internal/cli cmd/runnel", through: true,
		because: "etcd is one way to be found: who embeds the SDK or the server does not link its client"},
	{never: "github.com/nats-io/... github.com/quic-go/... github.com/cockroachdb/... github.com/spf13/...",
		but: "server internal/... cmd/runnel runneltest e2e", through: true,
		because: "a user's build must stay small: the SDK brings gRPC, protobuf and little else"},
	{never: "github.com/prometheus/...", but: "server internal/... cmd/runnel runneltest e2e prometheus", through: true,
		because: "the same; package prometheus is for those who have it anyway"},
}

// sdkModules is all that the SDK may bring into a user's build, directly or not.
var sdkModules = []string{
	"google.golang.org/grpc/...", "google.golang.org/protobuf/...", "google.golang.org/genproto/googleapis/rpc/...",
	"golang.org/x/net/...", "golang.org/x/sys/...", "golang.org/x/text/...", "golang.org/x/sync/...",
	"github.com/google/uuid", "github.com/klauspost/compress/...", "github.com/sony/gobreaker/v2",
	// The messages of the load reports that grpc's weighted balancer takes.
	"github.com/cncf/xds/go/xds/data/orca/v3", "github.com/cncf/xds/go/xds/service/orca/v3", "github.com/envoyproxy/protoc-gen-validate/validate",
}

func TestForbiddenImports(t *testing.T) {
	g := load(t)
	for _, p := range slices.Concat(g.checkRooms(rooms), g.checkBans(bans), g.checkOnly(".", sdkModules)) {
		t.Error(p)
	}
}

// graph holds what each package imports outside its tests. Our own packages are named by their path in the module.
type graph struct {
	imports map[string][]string
	ours    []string
}

const module = "github.com/runnelhq/runnel"

// load asks the go command for the packages of this module and all they need. Results of go test are reused as long as the
// files that the test itself read are the same; TestFiles reads every source file, so this test is never out of date.
func load(t *testing.T) graph {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
	}
	return newGraph(imports)
}

func newGraph(imports map[string][]string) graph {
	g := graph{imports: map[string][]string{}}
	short := func(p string) string {
		if p == module {
			return "."
		}
		return strings.TrimPrefix(p, module+"/")
	}
	for p, list := range imports {
		for i := range list {
			list[i] = short(list[i])
		}
		g.imports[short(p)] = list
		if p == module || strings.HasPrefix(p, module+"/") {
			g.ours = append(g.ours, short(p))
		}
	}
	slices.Sort(g.ours)
	return g
}

// covers reports whether p is one of the packages listed, separated by spaces.
func covers(list, p string) bool {
	for _, pattern := range strings.Fields(list) {
		dir, all := strings.CutSuffix(pattern, "/...")
		if p == dir || all && strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

func (g graph) checkRooms(rooms []room) (problems []string) {
	for _, r := range rooms {
		if !slices.Contains(g.ours, r.pkg) {
			problems = append(problems, fmt.Sprintf("%s is no package: remove its room from imports_test.go", r.pkg))
		}
	}
	for _, p := range g.ours {
		i := slices.IndexFunc(rooms, func(r room) bool { return r.pkg == p })
		if i < 0 {
			problems = append(problems, fmt.Sprintf("%s has no room: enter in imports_test.go what it may import, and why nothing else", p))
			continue
		}
		for _, q := range g.imports[p] {
			if slices.Contains(g.ours, q) && !covers(rooms[i].may, q) {
				problems = append(problems, fmt.Sprintf("%s must not import %s: %s", p, q, rooms[i].because))
			}
		}
	}
	return problems
}

func (g graph) checkBans(bans []ban) (problems []string) {
	for _, b := range bans {
		for _, p := range g.ours {
			if covers(b.but, p) {
				continue
			}
			if way := g.way(p, b.through, func(q string) bool { return covers(b.never, q) }); way != nil {
				problems = append(problems, fmt.Sprintf("%s must not import %s (%s): %s", p, way[len(way)-1], strings.Join(way, " -> "), b.because))
			}
		}
	}
	return problems
}

// checkOnly reports what p needs, however indirectly, beyond the standard library, our own packages and allowed.
func (g graph) checkOnly(p string, allowed []string) (problems []string) {
	list := strings.Join(allowed, " ")
	strange := func(q string) bool {
		host, _, _ := strings.Cut(q, "/")
		return strings.Contains(host, ".") && !slices.Contains(g.ours, q) && !covers(list, q)
	}
	if way := g.way(p, true, strange); way != nil {
		problems = append(problems, fmt.Sprintf("%s must not need %s (%s): it is none of %s", p, way[len(way)-1], strings.Join(way, " -> "), list))
	}
	return problems
}

// way is a shortest chain of imports from p to a package that is bad, or nil. Not through: one import long.
func (g graph) way(p string, through bool, bad func(string) bool) []string {
	seen := map[string]bool{p: true}
	for ways := [][]string{{p}}; len(ways) > 0; ways = ways[1:] {
		w := ways[0]
		for _, q := range g.imports[w[len(w)-1]] {
			if seen[q] {
				continue
			}
			seen[q] = true
			next := append(slices.Clone(w), q)
			if bad(q) {
				return next
			}
			if through {
				ways = append(ways, next)
			}
		}
	}
	return nil
}

// Planted violations are found, and what is allowed is not reported.
func TestImportCheckFindsViolations(t *testing.T) {
	g := newGraph(map[string][]string{
		module:                      {"fmt", module + "/api/runnel/v1", "example.com/small", "example.com/helper"},
		module + "/api/runnel/v1":   {"example.com/small"},
		module + "/internal/hub":    {"fmt", module + "/internal/session", module + "/internal/topic"},
		module + "/internal/topic":  {"testing"},
		module + "/internal/attic":  {},
		module + "/internal/broker": {"example.com/store/v2/disk"},
		"example.com/helper":        {"example.com/store/v2"},
		"example.com/small":         {"fmt"},
		"example.com/store/v2":      {"os"},
	})
	g.ours = append(g.ours, "internal/session")
	found := slices.Concat(
		g.checkRooms([]room{
			{".", "api/runnel/v1 internal/compress internal/id", "A"}, {"api/runnel/v1", "", "B"}, {"internal/hub", "internal/topic", "C"},
			{"internal/topic", "", "D"}, {"internal/broker", "", "E"}, {"internal/session", "", "F"},
			{"internal/gone", "", "J"},
		}),
		g.checkBans([]ban{
			{never: "example.com/store/v2/...", but: "internal/...", through: true, because: "G"},
			{never: "example.com/store/v2/...", because: "H"},
			{never: "testing", but: "internal/session", because: "I"},
		}),
		g.checkOnly(".", []string{"example.com/small", "example.com/helper/..."}),
	)
	want := []string{
		"internal/attic has no room: enter in imports_test.go what it may import, and why nothing else",
		"internal/gone is no package: remove its room from imports_test.go",
		"internal/hub must not import internal/session: C",
		". must not import example.com/store/v2 (. -> example.com/helper -> example.com/store/v2): G",
		"internal/broker must not import example.com/store/v2/disk (internal/broker -> example.com/store/v2/disk): H",
		"internal/topic must not import testing (internal/topic -> testing): I",
		". must not need example.com/store/v2 (. -> example.com/helper -> example.com/store/v2): it is none of example.com/small example.com/helper/...",
	}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("found\n  %s\nwant\n  %s", strings.Join(found, "\n  "), strings.Join(want, "\n  "))
	}
}
