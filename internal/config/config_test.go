package config

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/runnelhq/runnel/server"
)

// write makes a file in an empty directory that becomes the working directory, so that problems have short names.
func write(t *testing.T, text string) (path string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("r.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return "r.yaml"
}

func good(t *testing.T, path string, args []string, environ ...string) *Config {
	t.Helper()
	c, problems := Load(path, flagSet(t, args), environ)
	for _, p := range problems {
		t.Error(p)
	}
	if t.Failed() {
		t.FailNow()
	}
	return c
}

func flagSet(t *testing.T, args []string) *pflag.FlagSet {
	t.Helper()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags.String("config", "", "")
	AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return flags
}

// What this package calls the default is the default of the server.
func TestDefaults(t *testing.T) {
	t.Chdir(t.TempDir())
	c := good(t, "", nil)
	want, err := server.Config{}.Check()
	if err != nil {
		t.Fatal(err)
	}
	want.Defaults.Policies = overflows // the server's nil means all
	if want.Logger, c.Server.Logger = nil, nil; !reflect.DeepEqual(c.Server, want) {
		t.Errorf("got  %+v\nwant %+v", c.Server, want)
	}
	if c.LogLevel.String() != "INFO" || c.LogFormat != "text" {
		t.Errorf("log %v %q", c.LogLevel, c.LogFormat)
	}
}

// A field of server.Config that is added must get a key, or be named here.
func TestEveryFieldHasAKey(t *testing.T) {
	notKeys := []string{"TLS", "OTLP", "Issuers", "Roles", "Limits", "Defaults", "Namespaces", "Logger", "Listener", "Reread", "Reloaded", "Text", "Version", "Announce", "NATS"}
	var want []string
	for f := range reflect.TypeFor[server.Config]().Fields() {
		if !slices.Contains(notKeys, f.Name) {
			want = append(want, f.Name)
		}
	}
	for f := range reflect.TypeFor[server.TLS]().Fields() {
		want = append(want, "tls."+f.Name)
	}
	for f := range reflect.TypeFor[server.OTLP]().Fields() {
		want = append(want, "otlp."+f.Name)
	}
	for f := range reflect.TypeFor[server.NATS]().Fields() {
		if f.Name != "TLS" {
			want = append(want, "nats."+f.Name)
		}
	}
	for f := range reflect.TypeFor[server.NATSTLS]().Fields() {
		want = append(want, "nats.tls."+f.Name)
	}
	for f := range reflect.TypeFor[server.Limits]().Fields() {
		want = append(want, "limits."+f.Name)
	}
	for f := range reflect.TypeFor[server.Namespace]().Fields() {
		want = append(want, "defaults."+f.Name)
	}
	var got []string
	for _, key := range fixedKeys() {
		if !strings.HasPrefix(key, "log_") && !strings.HasPrefix(key, "discovery.") { // these make the Logger, and what it announces with
			got = append(got, key)
		}
	}
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	slices.SortFunc(want, func(a, b string) int { return strings.Compare(plain(a), plain(b)) })
	slices.SortFunc(got, func(a, b string) int { return strings.Compare(plain(a), plain(b)) })
	if !slices.EqualFunc(got, want, func(a, b string) bool { return plain(a) == plain(b) }) {
		t.Errorf("keys   %v\nfields %v", got, want)
	}
}

func TestLaterLayersWin(t *testing.T) {
	path := write(t, "listen: 127.0.0.1:1\nadmin: 127.0.0.1:1\ndata: file\nlog_format: json\nlimits:\n  max_subscriptions: 7\n")
	c := good(t, path, []string{"--listen=127.0.0.1:3", "--dev", "--insecure=false"},
		"RUNNEL_LISTEN=127.0.0.1:2", "RUNNEL_ADMIN=off", "RUNNEL_INSECURE=true", "RUNNEL_LIMITS_MAX_PAYLOAD_BYTES=2MiB", "RUNNEL_DEFAULTS_MAX_AGE=2d")
	s := c.Server
	if s.Listen != "127.0.0.1:3" || s.Admin != "off" || s.Data != "file" || !s.Dev || s.Insecure || c.LogFormat != "json" {
		t.Errorf("%+v", c)
	}
	if s.Limits.MaxSubscriptions != 7 || s.Limits.MaxPayloadBytes != 2<<20 || s.Limits.MaxNamespaces != 1000 || s.Defaults.MaxAge != 48*time.Hour {
		t.Errorf("%+v", s)
	}
	want := map[string]string{
		"listen": "--listen", "admin": "RUNNEL_ADMIN", "data": "r.yaml:3", "log_format": "r.yaml:4", "limits.max_subscriptions": "r.yaml:6",
		"dev": "--dev", "insecure": "--insecure", "limits.max_payload_bytes": "RUNNEL_LIMITS_MAX_PAYLOAD_BYTES", "defaults.max_age": "RUNNEL_DEFAULTS_MAX_AGE",
	}
	if !maps.Equal(c.sources, want) {
		t.Errorf("sources %v", c.sources)
	}
}

func TestNamespacesInheritDefaults(t *testing.T) {
	path := write(t, `
defaults: {history: os, max_events: 1000, max_bytes: 1GiB, max_age: 7d, overflow: disconnect, policies: [disconnect]}
namespaces:
  plain:
  own: {history: memory, max_age: 1h, policies: "drop-oldest, disconnect"}
  forever: {max_events: 0, max_bytes: 0, max_age: 0}
`)
	got := good(t, path, nil, "RUNNEL_NAMESPACES_OWN_DEDUP_IDS=5", "RUNNEL_NAMESPACES_ENV_ONLY_MAX_LAG=9").Server.Namespaces
	plain := server.Namespace{
		History: "os", MaxEvents: 1000, MaxBytes: 1 << 30, MaxAge: 7 * day, DedupWindow: 2 * time.Minute, DedupIDs: 1 << 20,
		Overflow: "disconnect", Policies: []string{"disconnect"}, MaxLag: 1024,
	}
	own, envOnly, forever := plain, plain, plain
	own.History, own.MaxAge, own.DedupIDs, own.Policies = "memory", time.Hour, 5, []string{"drop-oldest", "disconnect"}
	envOnly.MaxLag = 9
	forever.MaxEvents, forever.MaxBytes, forever.MaxAge = noLimit, noLimit, noAge // the server takes 0 for "as in defaults"
	want := map[string]server.Namespace{"plain": plain, "own": own, "env_only": envOnly, "forever": forever}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A variable cannot hold the name of every namespace, so it means the one in the file that looks alike.
func TestVariablesOfNamespaces(t *testing.T) {
	path := write(t, "namespaces: {Order-Books: , a-b: , A_b: }\n")
	c := good(t, path, nil, "RUNNEL_NAMESPACES_ORDER_BOOKS_MAX_LAG=7")
	if n := c.Server.Namespaces; n["Order-Books"].MaxLag != 7 || len(n) != 3 {
		t.Errorf("%+v", n)
	}
	_, problems := Load(path, nil, []string{"RUNNEL_NAMESPACES_A_B_MAX_LAG=7", "RUNNEL_NAMESPACES__MAX_LAG=7"})
	same(t, problems, `
RUNNEL_NAMESPACES_A_B_MAX_LAG: it may mean any of the namespaces A_b, a-b; set it in the file
RUNNEL_NAMESPACES__MAX_LAG: bad namespace "": it is empty`)
}

// Every mistake is reported, each where it is.
func TestFileProblems(t *testing.T) {
	const (
		keys   = "history, max_age, max_bytes, max_events, max_lag, max_lag_age, overflow, policies, publish_bytes, publish_rate, subscriptions"
		top    = "admin, advertise, audit, channelz, data, defaults, dev, discovery, drain_notice, drain_spread, drain_timeout, endpoints, engine, insecure, issuers, limits, listen, log_format, log_level, max_stream_age, namespaces, nats, node, otlp, roles, send_timeout, tls"
		limits = "client_publish_bytes, client_publish_rate, client_sessions, client_subscriptions, max_connections, max_connections_per_address, max_headers_bytes, max_namespaces, max_payload_bytes, max_streams_per_connection, max_subscriptions, memory_bytes, server_publish_bytes, server_publish_rate, server_sessions, server_subscriptions, subject_publish_bytes, subject_publish_rate, subject_sessions, subject_subscriptions"
	)
	for _, c := range []struct{ name, file, want string }{
		{"several", "listen: here\ndefaults:\n  history: dsk\n  max_age: soon\nnamespaces:\n  a:\n    max_bytes: 3XB\n    max_lag: -1\nlog_level: loud\n", `
r.yaml:1: listen: "here" is not an address; write HOST:PORT, as 127.0.0.1:50051
r.yaml:3: defaults.history: "dsk" is not one of disk, os, memory, none
r.yaml:4: defaults.max_age: "soon" is not a duration; write 30s, 5m, 24h or 7d
r.yaml:7: namespaces.a.max_bytes: "3XB" is not a size; write bytes, or a whole number with KiB, MiB or GiB, as 64MiB
r.yaml:8: namespaces.a.max_lag: "-1" is not a whole number
r.yaml:9: log_level: "loud" is not one of debug, info, warn, error`},
		{"unknown key", "listn: 127.0.0.1:1\n",
			"r.yaml:1: unknown key listn; known here: " + top},
		{"unknown key of limits", "limits:\n  max: 1\n",
			"r.yaml:2: unknown key limits.max; known here: " + limits},
		{"unknown key of a namespace", "namespaces:\n  a:\n    dedup_id: 1\n",
			"r.yaml:3: unknown key namespaces.a.dedup_id; known here: dedup_ids, dedup_window, " + keys},
		{"dotted key", "limits.max_namespaces: 1\n",
			"r.yaml:1: unknown key limits.max_namespaces; known here: " + top},
		{"strange key", "\"a\\nb\": 1\n",
			`r.yaml:1: unknown key "a\nb"; known here: ` + top},
		{"twice", "data: a\ndev: true\ndata: b\n", "r.yaml:3: data: is there twice, first in line 1"},
		{"bad namespace", "namespaces:\n  a.b: {}\n  \"*\": {}\n", `
r.yaml:2: namespaces: bad namespace "a.b": it is one token, without dots
r.yaml:3: namespaces: bad namespace "*": * and > stand only in patterns, each as a whole token`},
		{"no value", "data:\nlisten: ~\n", "r.yaml:1: data: has no value; write one, or leave the key out\nr.yaml:2: listen: has no value; write one, or leave the key out"},
		{"keys for a value", "data: {a: b}\n", "r.yaml:1: data: takes one value, not a list or keys"},
		{"list for a value", "data:\n  - a\n", "r.yaml:2: data: takes one value, not a list or keys"},
		{"value for keys", "limits: 5\n", "r.yaml:1: limits must hold keys, each on a line of its own; known here: " + limits},
		{"list for names", "namespaces: [a, b]\n", "r.yaml:1: namespaces must hold keys, each on a line of its own; known here: names of namespaces"},
		{"no keys at all", "hello\n",
			"r.yaml:1: the file must hold keys, each on a line of its own; known here: " + top},
		{"bad list", "defaults:\n  policies: [disconnect, [catch-up]]\n", "r.yaml:2: defaults.policies: must be a list of plain values"},
		{"empty list", "defaults:\n  policies: []\n", `r.yaml:2: defaults.policies: "" is not one of catch-up, drop-oldest, conflate, disconnect`},
		{"word twice", "defaults:\n  policies: [disconnect, disconnect]\n", "r.yaml:2: defaults.policies: disconnect is there twice"},
		{"overflow not among policies", "defaults:\n  policies: [disconnect]\nnamespaces:\n  a:\n    policies: [drop-oldest]\n", `
r.yaml:2: defaults: overflow catch-up is not among policies disconnect; add it there, or choose another
r.yaml:5: namespaces.a: overflow catch-up is not among policies drop-oldest; add it there, or choose another`},
		{"too many namespaces", "limits: {max_namespaces: 1}\nnamespaces: {a: , b: }\n",
			"r.yaml:1: limits.max_namespaces: 2 namespaces are configured, and only 1 allowed"},
		{"little memory", "limits:\n  memory_bytes: 1MiB\n",
			"r.yaml:2: limits.memory_bytes: 1048576 is less than the 33554432 bytes that a server needs; write more, or 0 for a quarter of what the process may use"},
		{"control characters", "data: |\n  a\n  b\n", `r.yaml:1: data: "a\nb\n" is not one line of printable text`},
		{"yes", "dev: yes\n", `r.yaml:1: dev: "yes" is not one of true, false`},
		{"no unit", "drain_timeout: 30\n", `r.yaml:1: drain_timeout: "30" is not a duration; write 30s, 5m, 24h or 7d`},
		{"zero", "drain_timeout: 0s\nlimits: {max_subscriptions: 0}\n", `
r.yaml:1: drain_timeout: "0s" must be more than 0
r.yaml:2: limits.max_subscriptions: "0" is not between 1 and 1073741824`},
		{"not YAML", "listen: x\n\tdata: y\n", "r.yaml:2: not YAML: found a tab character that violates indentation"},
		{"second document", "dev: true\n---\ndata: x\n", "r.yaml:2: a second document begins here; one file is one configuration"},
		{"not loopback", "listen: 0.0.0.0:50051\n",
			"will not listen on 0.0.0.0:50051: it can be reached from other machines, and there is no TLS and no authentication; --insecure allows it all the same"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := Load(write(t, c.file), nil, nil)
			same(t, problems, c.want)
		})
	}
}

func same(t *testing.T, problems []Problem, want string) {
	t.Helper()
	var got []string
	for _, p := range problems {
		got = append(got, p.Error())
	}
	if got := strings.Join(got, "\n"); got != strings.TrimPrefix(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.TrimPrefix(want, "\n"))
	}
}

// Mistakes in all layers are found together, also where a later layer hides them.
func TestProblemsOfAllLayers(t *testing.T) {
	path := write(t, "data: \"\"\nlog_level: loud\n")
	_, problems := Load(path, flagSet(t, []string{"--data=x", "--log-level=warn", "--log-format=xml", "--config=r.yaml"}), []string{
		"PATH=/bin", "RUNNEL_SERVER=x", "RUNNEL_TOKEN=x", "RUNNEL_ETCD=x", "RUNNEL_SERVICE_HOST=10.0.0.1", "RUNNEL_PORT=tcp://10.0.0.1:1", "RUNNEL_PORT_50051_TCP=x",
		"RUNNEL_ADMIN=", "RUNNEL_LIMITS_MAX_SUBSCRIPTIONS=many", "RUNNEL_LISTN=x", "RUNNEL_NAMESPACES_A_COLOUR=red", "RUNNEL_NAMESPACES_A.B_MAX_AGE=1d",
	})
	const none = `there is no such setting; see "runnel config show": limits.max_namespaces there, for one, is RUNNEL_LIMITS_MAX_NAMESPACES`
	same(t, problems, `
r.yaml:1: data: "" is not one line of printable text
r.yaml:2: log_level: "loud" is not one of debug, info, warn, error
RUNNEL_LIMITS_MAX_SUBSCRIPTIONS: "many" is not a whole number
RUNNEL_LISTN: `+none+`
RUNNEL_NAMESPACES_A_COLOUR: `+none+`
RUNNEL_NAMESPACES_A.B_MAX_AGE: bad namespace "a.b": it is one token, without dots
--log-format: "xml" is not one of text, json`)
}

func TestWhichFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if _, problems := Load("", nil, nil); problems != nil {
		t.Errorf("no file: %v", problems)
	}
	_, problems := Load("none.yaml", nil, nil)
	same(t, problems, `none.yaml: there is no such file; "runnel config init none.yaml" writes one`)
	_, problems = Load(filepath.Dir("x/"), nil, nil)
	same(t, problems, "x: there is no such file; \"runnel config init x\" writes one")
	if err := os.Mkdir("x", 0o700); err != nil {
		t.Fatal(err)
	}
	_, problems = Load("x", nil, nil)
	same(t, problems, "x: cannot be read: is a directory")
	if err := os.WriteFile(DefaultFile, []byte("data: found\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := good(t, "", nil); c.Server.Data != "found" {
		t.Errorf("%s was not read", DefaultFile)
	}
}

// The template loads, and if every key in it is uncommented it says nothing but the defaults, all of them.
func TestTemplate(t *testing.T) {
	c := good(t, write(t, string(Template())), nil)
	if n := c.Server.Namespaces["example"]; len(c.Server.Namespaces) != 1 || n.MaxAge != 7*day || len(c.sources) != 1 {
		t.Errorf("%+v, sources %v", c.Server.Namespaces, c.sources)
	}
	var all []string
	section := ""
	for line := range strings.Lines(string(Template())) {
		text, commented := strings.CutPrefix(strings.TrimLeft(line, " "), "# ")
		name, _, _ := strings.Cut(text, ":")
		known := isSection(name) || lookup(name) != nil || lookup("limits."+name) != nil || lookup("defaults."+name) != nil
		if name != "" && !strings.HasPrefix(line, " ") {
			section = name
		}
		if section == "nats" { // it is for the other engine
			known = name == section
		}
		if section == "tls" || section == "issuers" || section == "roles" { // what is optional there has no default to show
			known = name == section || name == "identity" || name == "min_version"
		}
		if section == "otlp" {
			known = name != "endpoint"
		}
		if commented && known && !slices.Contains([]string{"endpoints", "advertise", "discovery", "etcd", "service", "node"}, name) && !strings.Contains(name, " ") {
			line = strings.Replace(line, "# ", "", 1)
		}
		all = append(all, line)
	}
	set := good(t, write(t, strings.Join(all, "")), nil)
	if !reflect.DeepEqual(set.Server, c.Server) || set.LogLevel != c.LogLevel || set.LogFormat != c.LogFormat {
		t.Errorf("got  %+v\nwant %+v", set, c)
	}
	for key := range flagHelp {
		if lookup(key) == nil {
			t.Errorf("the flag of %s sets nothing", key)
		}
	}
	for _, key := range fixedKeys() {
		if !strings.Contains(key, ".") && flagHelp[key] == "" {
			t.Errorf("%s has no flag", key)
		}
		name := key[strings.LastIndex(key, ".")+1:]
		if set.sources[key] == "" && !strings.Contains(string(Template()), "# "+name+": ") {
			t.Errorf("%s is not in the template", key)
		}
	}
}

// What Show writes is a file that says the same.
func TestShow(t *testing.T) {
	path := write(t, "data: \"a: b # c\"\ndefaults:\n  max_age: 7d\n  max_events: 5\nnamespaces:\n  quotes:\n    max_events: 0\n  \"1\":\n    history: none\n")
	c := good(t, path, []string{"--dev"}, "RUNNEL_LIMITS_MAX_HEADERS_BYTES=1000")
	var b bytes.Buffer
	if err := c.Show(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	for _, want := range []string{
		"listen: 127.0.0.1:50051 # default", "data: 'a: b # c' # r.yaml:1", "dev: true # --dev", "max_headers_bytes: 1000 # RUNNEL_LIMITS_MAX_HEADERS_BYTES",
		"max_payload_bytes: 1MiB # default", "max_age: 7d # r.yaml:3", "max_age: 7d # defaults", "max_events: 0 # r.yaml:7", "history: none # r.yaml:9",
		"policies: [catch-up, drop-oldest, conflate, disconnect] # default", "dedup_window: 2m # default", `"1":`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
	again := good(t, write(t, b.String()), nil)
	if !reflect.DeepEqual(again.Server, c.Server) || again.LogLevel != c.LogLevel || again.LogFormat != c.LogFormat {
		t.Errorf("got  %+v\nwant %+v", again, c)
	}
}

func TestLogger(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "level=WARN msg=two"},
		{[]string{"--log-format=json", "--log-level=error"}, ""},
		{[]string{"--log-format=json"}, `"level":"WARN","msg":"two"`},
	} {
		t.Chdir(t.TempDir())
		var b bytes.Buffer
		conf := good(t, "", c.args)
		log := conf.Logger(&b, conf.LogLevel)
		log.Debug("one")
		log.Warn("two")
		if got := b.String(); !strings.Contains(got, c.want) || c.want == "" && got != "" || strings.Contains(got, "one") {
			t.Errorf("%v: %q", c.args, got)
		}
	}
}

// Whatever the file holds, loading it ends, problems are single printable lines with the line they are in, and a configuration
// without problems is shown as a file that loads the same.
func FuzzFile(f *testing.F) {
	f.Add(string(template))
	for _, s := range []string{"", "a", "limits: &a {max_namespaces: 5}\ndefaults: *a", "a: &a [*a]", "namespaces: {a: &n {history: os}, b: *n}", "? {a: b}\n: c", "<<: {dev: true}", "dev: !!bool true", "\x00", "listen: \"\\e\"", "data: |\n  a\n  b\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := newLoader("r.yaml")
		l.file([]byte(s))
		c, problems := l.config()
		for _, p := range problems {
			if e := p.Error(); len(e) > 4096 || strings.ContainsFunc(e, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("not one short printable line: %q", e)
			}
		}
		if len(problems) > 0 {
			return
		}
		var b bytes.Buffer
		if err := c.Show(&b); err != nil {
			t.Fatal(err)
		}
		again := newLoader("r.yaml")
		again.file(b.Bytes())
		d, problems := again.config()
		if c.Server.Logger, d.Server.Logger = nil, nil; len(problems) > 0 || !reflect.DeepEqual(c.Server, d.Server) {
			t.Fatalf("%v\n%s", problems, b.String())
		}
	})
}
