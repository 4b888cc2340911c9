package config

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/runnelhq/runnel/server"
)

// option is one setting of T: its key, its default as one would write it, what it means, and the value it sets.
type option[T any] struct {
	key, def, about string
	at              func(*T) value
}

var (
	histories = []string{"disk", "os", "memory", "none"}
	overflows = []string{"catch-up", "drop-oldest", "disconnect"}
)

var options = []option[Config]{
	{"listen", "127.0.0.1:50051", "gRPC address", func(c *Config) value { return address{&c.Server.Listen, false} }},
	{"admin", "127.0.0.1:9464", "address of metrics and health checks, or off", func(c *Config) value { return address{&c.Server.Admin, true} }},
	{"data", "data", "data directory", func(c *Config) value { return text{&c.Server.Data} }},
	{"insecure", "false", "allow addresses other than loopback, without TLS and authentication", func(c *Config) value { return boolean{&c.Server.Insecure} }},
	{"dev", "false", "namespaces appear on first use", func(c *Config) value { return boolean{&c.Server.Dev} }},
	{"log_level", "info", "least level that is logged: debug, info, warn or error", func(c *Config) value { return level{&c.LogLevel} }},
	{"log_format", "text", "form of the log: text or json", func(c *Config) value { return choice{&c.LogFormat, []string{"text", "json"}} }},
	{"drain_timeout", "30s", "longest time a stop may take", func(c *Config) value { return span{&c.Server.DrainTimeout, false} }},
	{"send_timeout", "30s", "a client that takes nothing for this long is cut", func(c *Config) value { return span{&c.Server.SendTimeout, false} }},
	{"limits.max_payload_bytes", "1MiB", "of an event", func(c *Config) value { return size[int]{&c.Server.Limits.MaxPayloadBytes, 1, 1 << 30} }},
	{"limits.max_headers_bytes", "16KiB", "of an event", func(c *Config) value { return size[int]{&c.Server.Limits.MaxHeadersBytes, 1, 1 << 30} }},
	{"limits.max_subscriptions", "100", "of a session", func(c *Config) value { return count[int]{&c.Server.Limits.MaxSubscriptions, 1, 1 << 30} }},
	{"limits.max_streams_per_connection", "1000", "of a connection", func(c *Config) value { return count[int]{&c.Server.Limits.MaxStreamsPerConnection, 1, 1 << 30} }},
	{"limits.max_namespaces", "1000", "of the server", func(c *Config) value { return count[int]{&c.Server.Limits.MaxNamespaces, 1, 1 << 30} }},
}

// namespaceOptions are the settings of defaults, and of each namespace.
var namespaceOptions = []option[server.Namespace]{
	{"history", "disk", "where events are kept", func(n *server.Namespace) value { return choice{&n.History, histories} }},
	{"max_events", "0", "newest events kept; 0: no limit", func(n *server.Namespace) value { return count[uint64]{&n.MaxEvents, 0, most} }},
	{"max_bytes", "0", "bytes kept; 0: no limit", func(n *server.Namespace) value { return size[uint64]{&n.MaxBytes, 0, most} }},
	{"max_age", "0s", "age up to which events are kept; 0s: no limit", func(n *server.Namespace) value { return span{&n.MaxAge, true} }},
	{"dedup_window", "2m", "how long event ids are remembered", func(n *server.Namespace) value { return span{&n.DedupWindow, false} }},
	{"dedup_ids", "1048576", "most event ids remembered", func(n *server.Namespace) value { return count[int]{&n.DedupIDs, 1, 1 << 30} }},
	{"overflow", "catch-up", "policy of subscriptions that name none", func(n *server.Namespace) value { return choice{&n.Overflow, overflows} }},
	{"policies", strings.Join(overflows, ","), "policies that may be asked for", func(n *server.Namespace) value { return list{&n.Policies, overflows} }},
	{"max_lag", "1024", "events behind before drop-oldest and disconnect act", func(n *server.Namespace) value { return count[uint64]{&n.MaxLag, 1, most} }},
}

// annotation marks the flags that are settings.
const annotation = "runnel-setting"

// AddFlags adds the flags that are settings: one for each key without a dot.
func AddFlags(flags *pflag.FlagSet) {
	for _, o := range options {
		if strings.Contains(o.key, ".") {
			continue
		}
		name := strings.ReplaceAll(o.key, "_", "-")
		if _, is := o.at(&Config{}).(boolean); is {
			flags.Bool(name, false, o.about)
		} else {
			flags.String(name, o.def, o.about)
		}
		flags.Lookup(name).Annotations = map[string][]string{annotation: {o.key}}
	}
}

// fixedKeys are the keys of all settings but those of namespaces.
func fixedKeys() []string {
	var keys []string
	for _, o := range options {
		keys = append(keys, o.key)
	}
	for _, o := range namespaceOptions {
		keys = append(keys, "defaults."+o.key)
	}
	return keys
}

// lookup returns a value to try a setting's text on, or nil if there is no such setting.
func lookup(key string) value {
	for _, o := range options {
		if o.key == key {
			return o.at(&Config{})
		}
	}
	section, field, _ := strings.Cut(key, ".")
	if section == "namespaces" {
		_, field, _ = strings.Cut(field, ".")
	} else if section != "defaults" {
		return nil
	}
	for _, o := range namespaceOptions {
		if o.key == field {
			return o.at(&server.Namespace{})
		}
	}
	return nil
}

// config makes the configuration from the layers. A namespace's setting that is given nowhere is that of defaults.
func (l *loader) config() (*Config, []Problem) {
	c := &Config{sources: l.sources}
	for _, o := range options {
		set(l, o, c, o.key, o.def)
	}
	for _, o := range namespaceOptions {
		set(l, o, &c.Server.Defaults, "defaults."+o.key, o.def)
	}
	c.Server.Namespaces = map[string]server.Namespace{}
	for name := range l.names {
		var n server.Namespace
		for _, o := range namespaceOptions {
			set(l, o, &n, "namespaces."+name+"."+o.key, or(l.values["defaults."+o.key], o.def))
		}
		c.Server.Namespaces[name] = n
	}
	if len(l.problems) == 0 {
		l.cross(c)
	}
	if len(l.problems) == 0 {
		checked, err := c.Server.Check()
		if err != nil {
			l.problem("", "%v", err)
		}
		c.Server = checked
	}
	return c, l.problems
}

// set gives a setting its value or its default. Values were checked when they were read, defaults by a test.
func set[T any](l *loader, o option[T], target *T, key, otherwise string) {
	if err := o.at(target).Set(or(l.values[key], otherwise)); err != nil {
		l.problem(l.sources[key], "%s: %v", key, err)
	}
}

// cross checks what depends on more than one setting.
func (l *loader) cross(c *Config) {
	if n, most := len(c.Server.Namespaces), c.Server.Limits.MaxNamespaces; n > most {
		l.problem(l.sources["limits.max_namespaces"], "limits.max_namespaces: %d namespaces are configured, and only %d allowed", n, most)
	}
	l.crossNamespace("defaults", c.Server.Defaults)
	for _, name := range namesOf(c) {
		n := c.Server.Namespaces[name]
		l.crossNamespace("namespaces."+name, n)
		c.Server.Namespaces[name] = unlimited(n, c.Server.Defaults)
	}
}

func (l *loader) crossNamespace(at string, n server.Namespace) {
	if slices.Contains(n.Policies, n.Overflow) {
		return
	}
	source := l.sources[at+".policies"]
	if source == "" {
		source = l.sources[at+".overflow"]
	}
	if source != "" { // else both come from defaults, where it is reported
		l.problem(source, "%s: overflow %s is not among policies %s; add it there, or choose another", at, n.Overflow, strings.Join(n.Policies, ", "))
	}
}

// unlimited makes "no limit" of a namespace stand against a limit in defaults: the server takes 0 as not set.
func unlimited(n, defaults server.Namespace) server.Namespace {
	if n.MaxEvents == 0 && defaults.MaxEvents != 0 {
		n.MaxEvents = most
	}
	if n.MaxBytes == 0 && defaults.MaxBytes != 0 {
		n.MaxBytes = most
	}
	if n.MaxAge == 0 && defaults.MaxAge != 0 {
		n.MaxAge = longest
	}
	return n
}
