package config

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/runnelhq/runnel/server"
)

// option is one setting of T: its key, its default as one would write it, and the value it sets.
type option[T any] struct {
	key, def string
	at       func(*T) value
}

var (
	histories = []string{"disk", "os", "memory", "none"}
	overflows = []string{"catch-up", "drop-oldest", "conflate", "disconnect"}
)

var options = []option[Config]{
	{"listen", "127.0.0.1:50051",
		func(c *Config) value { return address{&c.Server.Listen, false} }},
	{"admin", "127.0.0.1:9464",
		func(c *Config) value { return address{&c.Server.Admin, true} }},
	{"data", "data",
		func(c *Config) value { return text{&c.Server.Data} }},
	{"insecure", "false",
		func(c *Config) value { return boolean{&c.Server.Insecure} }},
	{"dev", "false",
		func(c *Config) value { return boolean{&c.Server.Dev} }},
	{"log_level", "info",
		func(c *Config) value { return level{&c.LogLevel} }},
	{"log_format", "text",
		func(c *Config) value { return choice{&c.LogFormat, []string{"text", "json"}} }},
	{"drain_timeout", "30s",
		func(c *Config) value { return span{&c.Server.DrainTimeout, false} }},
	{"send_timeout", "30s",
		func(c *Config) value { return span{&c.Server.SendTimeout, false} }},
	{"limits.max_payload_bytes", "1MiB",
		func(c *Config) value { return size[int]{&c.Server.Limits.MaxPayloadBytes, 1, 1 << 30} }},
	{"limits.max_headers_bytes", "16KiB",
		func(c *Config) value { return size[int]{&c.Server.Limits.MaxHeadersBytes, 1, 1 << 30} }},
	{"limits.max_subscriptions", "100",
		func(c *Config) value { return count[int]{&c.Server.Limits.MaxSubscriptions, 1, 1 << 30} }},
	{"limits.max_streams_per_connection", "1000",
		func(c *Config) value { return count[int]{&c.Server.Limits.MaxStreamsPerConnection, 1, 1 << 30} }},
	{"limits.max_namespaces", "1000",
		func(c *Config) value { return count[int]{&c.Server.Limits.MaxNamespaces, 1, 1 << 30} }},
	{"limits.memory_bytes", "0",
		func(c *Config) value { return size[int64]{&c.Server.Limits.MemoryBytes, 0, huge} }},
}

// namespaceOptions are the settings of defaults, and of each namespace.
var namespaceOptions = []option[server.Namespace]{
	{"history", "disk",
		func(n *server.Namespace) value { return choice{&n.History, histories} }},
	{"max_events", "0",
		func(n *server.Namespace) value { return count[uint64]{&n.MaxEvents, 0, huge} }},
	{"max_bytes", "0",
		func(n *server.Namespace) value { return size[uint64]{&n.MaxBytes, 0, huge} }},
	{"max_age", "0s",
		func(n *server.Namespace) value { return span{&n.MaxAge, true} }},
	{"dedup_window", "2m",
		func(n *server.Namespace) value { return span{&n.DedupWindow, false} }},
	{"dedup_ids", "1048576",
		func(n *server.Namespace) value { return count[int]{&n.DedupIDs, 1, 1 << 30} }},
	{"overflow", "catch-up",
		func(n *server.Namespace) value { return choice{&n.Overflow, overflows} }},
	{"policies", strings.Join(overflows, ","),
		func(n *server.Namespace) value { return list{&n.Policies, overflows} }},
	{"max_lag", "1024",
		func(n *server.Namespace) value { return count[uint64]{&n.MaxLag, 1, huge} }},
	{"max_lag_age", "0s",
		func(n *server.Namespace) value { return span{&n.MaxLagAge, true} }},
}

// flagHelp is the help of each key without a dot, which is also a flag.
var flagHelp = map[string]string{
	"listen":        "gRPC address",
	"admin":         "address of metrics and health checks, or off",
	"data":          "data directory",
	"insecure":      "allow addresses other than loopback, without TLS and authentication",
	"dev":           "namespaces appear on first use",
	"log_level":     "least level that is logged: debug, info, warn or error",
	"log_format":    "form of the log: text or json",
	"drain_timeout": "longest time a stop may take",
	"send_timeout":  "a client that takes nothing for this long is cut",
}

// annotation marks the flags that are settings.
const annotation = "runnel-setting"

// AddFlags adds the flags that are settings: one for each key without a dot.
func AddFlags(flags *pflag.FlagSet) {
	for _, o := range options {
		help, ok := flagHelp[o.key]
		if !ok {
			continue
		}
		name := strings.ReplaceAll(o.key, "_", "-")
		if _, is := o.at(&Config{}).(boolean); is {
			flags.Bool(name, false, help)
		} else {
			flags.String(name, o.def, help)
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
			set(l, o, &n, "namespaces."+name+"."+o.key, cmp.Or(l.values["defaults."+o.key], o.def))
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
	if err := o.at(target).Set(cmp.Or(l.values[key], otherwise)); err != nil {
		l.problem(l.sources[key], "%s: %v", key, err)
	}
}

// cross checks what depends on more than one setting.
func (l *loader) cross(c *Config) {
	if n := c.Server.Limits.MemoryBytes; n > 0 && n < server.MinMemoryBytes {
		l.problem(l.sources["limits.memory_bytes"], "limits.memory_bytes: %d is less than the %d bytes that a server needs; write more, or 0 for a quarter of what the process may use",
			n, server.MinMemoryBytes)
	}
	if n, allowed := len(c.Server.Namespaces), c.Server.Limits.MaxNamespaces; n > allowed {
		l.problem(l.sources["limits.max_namespaces"], "limits.max_namespaces: %d namespaces are configured, and only %d allowed", n, allowed)
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
		n.MaxEvents = noLimit
	}
	if n.MaxBytes == 0 && defaults.MaxBytes != 0 {
		n.MaxBytes = noLimit
	}
	if n.MaxAge == 0 && defaults.MaxAge != 0 {
		n.MaxAge = noAge
	}
	if n.MaxLagAge == 0 && defaults.MaxLagAge != 0 {
		n.MaxLagAge = noAge
	}
	return n
}
