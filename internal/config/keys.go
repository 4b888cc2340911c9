package config

import (
	"cmp"
	"maps"
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
	engines   = []string{server.Embedded, server.OnNATS}
	histories = []string{"disk", "os", "memory", "none"}
	overflows = []string{"catch-up", "drop-oldest", "conflate", "disconnect"}

	algorithms = []string{"HS256", "RS256", "PS256", "ES256", "EdDSA"}
)

var options = []option[Config]{
	{"listen", "127.0.0.1:50051",
		func(c *Config) value { return address{&c.Server.Listen, false} }},
	{"admin", "127.0.0.1:9464",
		func(c *Config) value { return address{&c.Server.Admin, true} }},
	{"data", "data",
		func(c *Config) value { return text{&c.Server.Data} }},
	{"engine", "embedded",
		func(c *Config) value { return choice{&c.Server.Engine, engines} }},
	{"nats.urls", "",
		func(c *Config) value { return addresses{texts{&c.Server.NATS.URLs}} }},
	{"nats.credentials", "",
		func(c *Config) value { return text{&c.Server.NATS.Credentials} }},
	{"nats.nkey", "",
		func(c *Config) value { return text{&c.Server.NATS.NKey} }},
	{"nats.user", "",
		func(c *Config) value { return text{&c.Server.NATS.User} }},
	{"nats.password", "",
		func(c *Config) value { return secret{&c.Server.NATS.Password} }},
	{"nats.token", "",
		func(c *Config) value { return secret{&c.Server.NATS.Token} }},
	{"nats.tls.ca", "",
		func(c *Config) value { return text{&c.Server.NATS.TLS.CA} }},
	{"nats.tls.cert", "",
		func(c *Config) value { return text{&c.Server.NATS.TLS.Cert} }},
	{"nats.tls.key", "",
		func(c *Config) value { return text{&c.Server.NATS.TLS.Key} }},
	{"nats.replicas", "3",
		func(c *Config) value { return count[int]{&c.Server.NATS.Replicas, 1, 5} }},
	{"nats.prefix", "runnel",
		func(c *Config) value { return text{&c.Server.NATS.Prefix} }},
	{"node", "",
		func(c *Config) value { return node{text{&c.Server.Node}} }},
	{"insecure", "false",
		func(c *Config) value { return boolean{&c.Server.Insecure} }},
	{"dev", "false",
		func(c *Config) value { return boolean{&c.Server.Dev} }},
	{"channelz", "false",
		func(c *Config) value { return boolean{&c.Server.Channelz} }},
	{"log_level", "info",
		func(c *Config) value { return level{&c.LogLevel} }},
	{"log_format", "text",
		func(c *Config) value { return choice{&c.LogFormat, []string{"text", "json"}} }},
	{"drain_timeout", "30s",
		func(c *Config) value { return span{&c.Server.DrainTimeout, false} }},
	{"drain_spread", "0s",
		func(c *Config) value { return span{&c.Server.DrainSpread, true} }},
	{"drain_notice", "0s",
		func(c *Config) value { return span{&c.Server.DrainNotice, true} }},
	{"max_stream_age", "0s",
		func(c *Config) value { return span{&c.Server.MaxStreamAge, true} }},
	{"endpoints", "",
		func(c *Config) value { return texts{&c.Server.Endpoints} }},
	{"advertise", "",
		func(c *Config) value { return address{&c.Server.Advertise, false} }},
	{"send_timeout", "30s",
		func(c *Config) value { return span{&c.Server.SendTimeout, false} }},
	{"audit", "auto",
		func(c *Config) value { return text{&c.Server.Audit} }},
	{"tls.cert", "",
		func(c *Config) value { return text{&c.Server.TLS.Cert} }},
	{"tls.key", "",
		func(c *Config) value { return text{&c.Server.TLS.Key} }},
	{"tls.client_ca", "",
		func(c *Config) value { return text{&c.Server.TLS.ClientCA} }},
	{"tls.client_auth", "",
		func(c *Config) value { return choice{&c.Server.TLS.ClientAuth, []string{"required", "optional"}} }},
	{"tls.identity", "cn",
		func(c *Config) value { return choice{&c.Server.TLS.Identity, []string{"uri", "dns", "cn"}} }},
	{"tls.min_version", "1.2",
		func(c *Config) value { return choice{&c.Server.TLS.MinVersion, []string{"1.2", "1.3"}} }},
	{"otlp.endpoint", "",
		func(c *Config) value { return address{&c.Server.OTLP.Endpoint, false} }},
	{"otlp.insecure", "false",
		func(c *Config) value { return boolean{&c.Server.OTLP.Insecure} }},
	{"otlp.every", "1m",
		func(c *Config) value { return span{&c.Server.OTLP.Every, false} }},
	{"discovery.etcd.endpoints", "",
		func(c *Config) value { return texts{&c.Etcd.Endpoints} }},
	{"discovery.etcd.service", "",
		func(c *Config) value { return text{&c.Etcd.Service} }},
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
	{"limits.max_connections", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.MaxConnections, 0, 1 << 30} }},
	{"limits.max_connections_per_address", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.MaxConnectionsPerAddress, 0, 1 << 30} }},
	{"limits.server_publish_rate", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ServerPublishRate, 0, 1 << 30} }},
	{"limits.server_publish_bytes", "0",
		func(c *Config) value { return size[int64]{&c.Server.Limits.ServerPublishBytes, 0, huge} }},
	{"limits.server_sessions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ServerSessions, 0, 1 << 30} }},
	{"limits.server_subscriptions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ServerSubscriptions, 0, 1 << 30} }},
	{"limits.client_publish_rate", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ClientPublishRate, 0, 1 << 30} }},
	{"limits.client_publish_bytes", "0",
		func(c *Config) value { return size[int64]{&c.Server.Limits.ClientPublishBytes, 0, huge} }},
	{"limits.client_sessions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ClientSessions, 0, 1 << 30} }},
	{"limits.client_subscriptions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.ClientSubscriptions, 0, 1 << 30} }},
	{"limits.subject_publish_rate", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.SubjectPublishRate, 0, 1 << 30} }},
	{"limits.subject_publish_bytes", "0",
		func(c *Config) value { return size[int64]{&c.Server.Limits.SubjectPublishBytes, 0, huge} }},
	{"limits.subject_sessions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.SubjectSessions, 0, 1 << 30} }},
	{"limits.subject_subscriptions", "0",
		func(c *Config) value { return count[int]{&c.Server.Limits.SubjectSubscriptions, 0, 1 << 30} }},
	{"limits.memory_bytes", "0",
		func(c *Config) value { return size[int64]{&c.Server.Limits.MemoryBytes, 0, huge} }},
}

// namespaceOptions are the settings of defaults, and of each namespace.
var issuerOptions = []option[server.Issuer]{
	{"issuer", "",
		func(i *server.Issuer) value { return text{&i.Issuer} }},
	{"audience", "",
		func(i *server.Issuer) value { return texts{&i.Audience} }},
	{"algorithms", "",
		func(i *server.Issuer) value { return list{&i.Algorithms, algorithms} }},
	{"keys", "",
		func(i *server.Issuer) value { return texts{&i.Keys} }},
	{"jwks", "",
		func(i *server.Issuer) value { return text{&i.JWKS} }},
	{"client_claim", "client_id",
		func(i *server.Issuer) value { return text{&i.ClientClaim} }},
	{"subject_prefix", "",
		func(i *server.Issuer) value { return text{&i.SubjectPrefix} }},
}

var roleOptions = []option[server.Role]{
	{"claims", "",
		func(r *server.Role) value { return texts{&r.Claims} }},
	{"subjects", "",
		func(r *server.Role) value { return texts{&r.Subjects} }},
	{"certificates", "",
		func(r *server.Role) value { return texts{&r.Certificates} }},
	{"issuers", "",
		func(r *server.Role) value { return texts{&r.Issuers} }},
	{"authenticated", "false",
		func(r *server.Role) value { return boolean{&r.Authenticated} }},
	{"anonymous", "false",
		func(r *server.Role) value { return boolean{&r.Anonymous} }},
	{"publish", "",
		func(r *server.Role) value { return texts{&r.Publish} }},
	{"subscribe", "",
		func(r *server.Role) value { return texts{&r.Subscribe} }},
	{"history", "",
		func(r *server.Role) value { return texts{&r.History} }},
	{"admin", "",
		func(r *server.Role) value { return texts{&r.Admin} }},
	{"deny_publish", "",
		func(r *server.Role) value { return texts{&r.DenyPublish} }},
	{"deny_subscribe", "",
		func(r *server.Role) value { return texts{&r.DenySubscribe} }},
	{"deny_history", "",
		func(r *server.Role) value { return texts{&r.DenyHistory} }},
	{"deny_admin", "",
		func(r *server.Role) value { return texts{&r.DenyAdmin} }},
}

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
	{"publish_rate", "0",
		func(n *server.Namespace) value { return count[int]{&n.PublishRate, 0, 1 << 30} }},
	{"publish_bytes", "0",
		func(n *server.Namespace) value { return size[int64]{&n.PublishBytes, 0, huge} }},
	{"subscriptions", "0",
		func(n *server.Namespace) value { return count[int]{&n.Subscriptions, 0, 1 << 30} }},
}

// flagHelp is the help of each key that is also a flag: all without a dot, and what --engine nats needs.
var flagHelp = map[string]string{
	"listen":         "gRPC address",
	"admin":          "address of metrics and health checks, or off",
	"data":           "data directory of the embedded engine",
	"engine":         "what keeps the events: embedded or nats",
	"nats.urls":      "servers of the NATS cluster, separated by commas",
	"node":           "id of this server among those that share a cluster; default the machine's name and the port",
	"insecure":       "allow addresses other than loopback, without TLS and authentication",
	"dev":            "namespaces appear on first use",
	"channelz":       "serve what gRPC knows of its connections to administrators",
	"log_level":      "least level that is logged: debug, info, warn or error",
	"log_format":     "form of the log: text or json",
	"drain_timeout":  "longest time a stop may take",
	"audit":          "where the audit log goes: auto, log, off or a file",
	"drain_spread":   "sessions are told to move over this time; 0s: 2s where there is somewhere to go",
	"drain_notice":   "sessions that are told to move go on so long; 0s: 2s where there is somewhere to go",
	"max_stream_age": "sessions that are older end, give or take a quarter, and clients come back; 0s: never",
	"endpoints":      "addresses that clients are told to go to, separated by commas",
	"advertise":      "address that others reach this server at; default that of --listen",
	"send_timeout":   "a client that takes nothing for this long is cut",
}

// annotation marks the flags that are settings.
const annotation = "runnel-setting"

// AddFlags adds the flags that are settings.
func AddFlags(flags *pflag.FlagSet) {
	for _, o := range options {
		help, ok := flagHelp[o.key]
		if !ok {
			continue
		}
		name := strings.NewReplacer("_", "-", ".", "-").Replace(o.key)
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
	if section == "defaults" {
		return find(namespaceOptions, field)
	}
	if f := familyOf(section); f != nil {
		_, field, _ = strings.Cut(field, ".")
		return f.find(field)
	}
	return nil
}

func find[T any](options []option[T], key string) value {
	for _, o := range options {
		if o.key == key {
			return o.at(new(T))
		}
	}
	return nil
}

// family is a section of things that have names of their own, each with the same settings.
type family struct {
	section string
	find    func(key string) value // nil: there is no such setting
	keys    []string
}

func familyFor[T any](section string, options []option[T]) *family {
	f := &family{section: section, find: func(key string) value { return find(options, key) }}
	for _, o := range options {
		f.keys = append(f.keys, o.key)
	}
	return f
}

var families = []*family{
	familyFor("namespaces", namespaceOptions), familyFor("issuers", issuerOptions), familyFor("roles", roleOptions),
}

// familyOf is the family of that section, or nil.
func familyOf(section string) *family {
	for _, f := range families {
		if f.section == section {
			return f
		}
	}
	return nil
}

// things makes what the settings of a family's names say.
func things[T any](l *loader, section string, options []option[T], inherit bool) map[string]T {
	if len(l.names[section]) == 0 {
		return nil
	}
	all := map[string]T{}
	for name := range l.names[section] {
		var thing T
		for _, o := range options {
			def := o.def
			if inherit {
				def = cmp.Or(l.values["defaults."+o.key], def)
			}
			set(l, o, &thing, section+"."+name+"."+o.key, def)
		}
		all[name] = thing
	}
	return all
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
	c.Server.Namespaces = things(l, "namespaces", namespaceOptions, true)
	c.Server.Issuers = things(l, "issuers", issuerOptions, false)
	c.Server.Roles = things(l, "roles", roleOptions, false)
	l.forEngine(c)
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
	if len(l.problems) == 0 {
		if err := c.Server.CheckFiles(); err != nil {
			l.problem("", "%v", err)
		}
	}
	return c, l.problems
}

// set gives a setting its value or its default. Values were checked when they were read, defaults by a test.
func set[T any](l *loader, o option[T], target *T, key, otherwise string) {
	text := cmp.Or(l.values[key], otherwise)
	if text == "" {
		return // it may be left out
	}
	if err := o.at(target).Set(text); err != nil {
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
	for name, i := range c.Server.Issuers {
		if err := i.Check(); err != nil {
			l.problem(l.places["issuers."+name], "issuers.%s: %v", name, err)
		}
	}
	for name, r := range c.Server.Roles {
		if err := r.Check(); err != nil {
			l.problem(l.places["roles."+name], "roles.%s: %v", name, err)
		}
	}
	l.crossEngine(c)
	l.crossDiscovery(c)
	l.crossNamespace("defaults", c.Server.Defaults)
	for _, name := range slices.Sorted(maps.Keys(c.Server.Namespaces)) {
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
