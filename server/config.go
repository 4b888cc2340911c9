package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Config is everything a server needs to know. The zero value of a field means its default.
type Config struct {
	Listen   string // gRPC address; default 127.0.0.1:50051
	Admin    string // address of metrics and health checks; default 127.0.0.1:9464; "off" for none
	Data     string // data directory, where Engine is embedded; default "data"
	Insecure bool   // allows addresses other than loopback without TLS and authentication
	Dev      bool   // namespaces appear on first use, with Defaults

	Engine string // what keeps the events: Embedded (default) or OnNATS
	NATS   NATS   // the cluster, where Engine is OnNATS
	// Node is who this server is among those that share a cluster, each another: letters, digits, -, _ and dots. Default: the name of the
	// machine and the port of Listen.
	Node string

	DrainTimeout time.Duration // at most this until a stop is forced; default 30 s
	// DrainSpread is the time over which sessions are told to move, one after the other. Default 2 s where there is somewhere to go, that is
	// with Endpoints, Advertise or MaxStreamAge, or while other nodes share the cluster, else 0: who waits for this server to start again gains
	// nothing by being told late. At most half of DrainTimeout.
	DrainSpread time.Duration
	SendTimeout time.Duration // a client that takes nothing for this long is cut; default 30 s
	// DrainNotice is how long a session that is told to move goes on, so that its client can begin elsewhere first. Default 2 s where there is
	// somewhere to go, else 0; at most a quarter of DrainTimeout.
	DrainNotice time.Duration
	// Channelz serves what grpc-go knows of its connections and streams (grpc.channelz.v1.Channelz) to administrators.
	Channelz bool
	// MaxStreamAge ends sessions that are older, give or take a quarter, so that clients spread over servers that were added; 0: no limit.
	MaxStreamAge time.Duration
	// Endpoints are the addresses of servers that clients may go to, which they are told when they come and when they have to move. Those of
	// other nodes that share the cluster come before them by themselves.
	Endpoints []string
	// Advertise is the address that others reach this server at, HOST:PORT; default where it listens. Nodes that share a cluster tell it to
	// their clients.
	Advertise string
	// Announce, if set, is called with that address when the server takes calls, to let others find it. What it returns is called when the
	// server stops: after health says so, and before sessions are told. It must not take longer than some seconds.
	Announce func(address string) (withdraw func())

	TLS     TLS
	Issuers map[string]Issuer // of tokens, by a name of your choice
	Roles   map[string]Role   // by name. Issuers, Roles or TLS.ClientCA turn authentication on
	// Audit is where it is written who connected, was refused, subscribed, and was cut: log (the server's log), off, or a file that JSON
	// lines are appended to; auto, the default, is log where there is authentication, else off.
	Audit string

	// OTLP sends traces and metrics to an OpenTelemetry collector.
	OTLP OTLP

	Limits     Limits
	Defaults   Namespace            // what Namespaces leave out
	Namespaces map[string]Namespace // by name

	Logger *slog.Logger // default: discard

	// Reread reads the configuration again, for operators who ask for it, and also names settings that are none of Config's, have changed and
	// need a restart. Text shows the configuration in force. Without them operators can do neither.
	Reread func() (next Config, also []string, err error)
	Text   func() (string, error)
	// Reloaded, if set, is called when Reload has put this configuration in force.
	Reloaded func()
	// Version is what operators are told; default devel.
	Version string

	// Listener, if set, is used in place of Listen: for tests, and for sockets that come from outside.
	Listener net.Listener
}

// Limits bound what clients may do.
type Limits struct {
	MaxPayloadBytes         int // of an event; default 1 MiB, on NATS 896 KiB
	MaxHeadersBytes         int // of an event; default 16 KiB
	MaxSubscriptions        int // of a session; default 100
	MaxStreamsPerConnection int // default 1,000
	MaxNamespaces           int // default 1,000
	MaxConnections          int // at once; 0: no limit
	// MaxConnectionsPerAddress bounds those of one IP address; 0: 4,096, and no limit for loopback.
	MaxConnectionsPerAddress int
	// What all clients together, one client id, and one authenticated subject may do; 0: no limit. PublishRate is events, PublishBytes
	// their bytes, per second; Sessions and Subscriptions are open at once.
	ServerPublishRate, ClientPublishRate, SubjectPublishRate       int
	ServerPublishBytes, ClientPublishBytes, SubjectPublishBytes    int64
	ServerSessions, ClientSessions, SubjectSessions                int
	ServerSubscriptions, ClientSubscriptions, SubjectSubscriptions int
	// MemoryBytes is what the server holds at most for its clients: windows, pages of the log, events on their way, sessions.
	// Default: a quarter of what the process may use (GOMEMLIMIT, its control group, the machine's memory).
	MemoryBytes int64
}

// Namespace is how a namespace keeps its events, and what its subscribers may ask for.
type Namespace struct {
	History     string        // disk (default), os, memory or none
	MaxEvents   uint64        // newest events kept; 0: no limit
	MaxBytes    uint64        // bytes kept; 0: no limit
	MaxAge      time.Duration // 0: no limit
	DedupWindow time.Duration // how long event ids are remembered; default 2 minutes
	DedupIDs    int           // most event ids remembered; default 1,048,576
	Overflow    string        // policy of subscriptions that name none: catch-up (default), drop-oldest, conflate, disconnect
	Policies    []string      // policies that may be asked for; empty: all
	MaxLag      uint64        // events behind before drop-oldest and disconnect act; default 1,024
	MaxLagAge   time.Duration // age of the oldest event not sent before they act; 0: no limit
	// What may be published here per second, in events and bytes, and how many subscriptions may follow at once; 0: no limit.
	PublishRate   int
	PublishBytes  int64
	Subscriptions int
}

// TLS is where certificates are. Files are looked at every second, and taken when they have changed.
type TLS struct {
	Cert, Key  string // PEM files; empty: no TLS
	ClientCA   string // PEM file; clients whose certificates it signed are who their certificates say
	ClientAuth string // required (default) or optional, where ClientCA is set
	Identity   string // the part of a certificate that names its client: uri, dns or cn (default)
	MinVersion string // 1.2 (default) or 1.3
}

// OTLP says where an OpenTelemetry collector takes OTLP over gRPC.
type OTLP struct {
	Endpoint string        // HOST:PORT; empty: none
	Insecure bool          // without TLS
	Every    time.Duration // between two sendings of metrics; default 1 minute
}

// Issuer is an issuer of tokens (JWT).
type Issuer struct {
	Issuer        string   // iss, exactly
	Audience      []string // one of them must be in aud
	Algorithms    []string // HS256, or some of RS256, PS256, ES256, EdDSA
	Keys          []string // files: PEM public keys or certificates, JWK or JWKS; for HS256 the secret, 32 bytes or more
	JWKS          string   // URL that keys are fetched from: https, or http on loopback
	ClientClaim   string   // the claim with further client ids of the subject; default client_id
	SubjectPrefix string   // put before subjects, to keep issuers apart
}

// Role says who may do what. In patterns {sub} and {claim.NAME} are filled in from the token; > alone is everything; what is denied is
// denied whatever else allows.
type Role struct {
	Claims        []string // NAME=VALUE in the token
	Subjects      []string // of tokens; * at the end matches the rest
	Certificates  []string // identities in certificates; * at the end matches the rest
	Issuers       []string // names of issuers whose tokens count; empty: all
	Authenticated bool     // everybody who is authenticated
	Anonymous     bool     // everybody who is not

	Publish, Subscribe, History, Admin                 []string
	DenyPublish, DenySubscribe, DenyHistory, DenyAdmin []string
}

var policies = map[string]runnelv1.OverflowPolicy{
	"catch-up":    runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP,
	"conflate":    runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE,
	"drop-oldest": runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST,
	"disconnect":  runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT,
}

// What DrainSpread and DrainNotice are where there is somewhere to go.
const (
	defaultSpread = 2 * time.Second
	defaultNotice = 2 * time.Second
)

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// withDefaults fills in what is not set and checks the rest; errors name the field.
func (c Config) withDefaults() (Config, error) {
	set(&c.Listen, "127.0.0.1:50051")
	set(&c.Admin, "127.0.0.1:9464")
	set(&c.Data, "data")
	set(&c.DrainTimeout, 30*time.Second)
	if len(c.Endpoints) > 0 || c.Advertise != "" || c.Announce != nil || c.MaxStreamAge > 0 {
		set(&c.DrainSpread, defaultSpread)
		set(&c.DrainNotice, defaultNotice)
	}
	c.DrainSpread = min(c.DrainSpread, c.DrainTimeout/2)
	c.DrainNotice = min(c.DrainNotice, c.DrainTimeout/4)
	set(&c.SendTimeout, 30*time.Second)
	if err := c.checkEngine(); err != nil {
		return c, err
	}
	set(&c.Limits.MaxPayloadBytes, 1<<20)
	set(&c.Limits.MaxHeadersBytes, 16<<10)
	set(&c.Limits.MaxSubscriptions, 100)
	set(&c.Limits.MaxStreamsPerConnection, 1000)
	set(&c.Limits.MaxNamespaces, 1000)
	if c.Limits.MemoryBytes == 0 {
		c.Limits.MemoryBytes = max(usableMemory()/4, MinMemoryBytes)
	}
	if c.Limits.MemoryBytes < MinMemoryBytes {
		return c, fmt.Errorf("limits: memory_bytes is %d; the least that works is %d", c.Limits.MemoryBytes, MinMemoryBytes)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	set(&c.OTLP.Every, time.Minute)
	if err := c.exposed(); err != nil {
		return c, err
	}
	if err := c.reachable(); err != nil {
		return c, err
	}
	var err error
	if c.TLS, err = c.TLS.withDefaults(); err != nil {
		return c, err
	}
	if c.Audit == "" || c.Audit == "auto" {
		c.Audit = "off"
		if c.authenticates() {
			c.Audit = "log"
		}
	}
	if c.Defaults, err = c.Defaults.over(Namespace{History: string(engine.HistoryDisk), DedupWindow: 2 * time.Minute, DedupIDs: 1 << 20, Overflow: "catch-up", MaxLag: 1024}); err != nil {
		return c, fmt.Errorf("defaults: %w", err)
	}
	all := make(map[string]Namespace, len(c.Namespaces))
	for name, n := range c.Namespaces {
		if _, err := topic.ParseNamespace(name); err != nil {
			return c, err
		}
		if all[name], err = n.over(c.Defaults); err != nil {
			return c, fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	c.Namespaces = all
	return c, nil
}

// checkEngine fills in and checks what says where events are kept.
func (c *Config) checkEngine() error {
	if c.Node != "" {
		if err := CheckNode(c.Node); err != nil {
			return err
		}
	}
	set(&c.NATS.Replicas, 3)
	set(&c.NATS.Prefix, "runnel")
	switch {
	case c.Engine == OnNATS:
		set(&c.Limits.MaxPayloadBytes, natsPayload)
		return c.NATS.check()
	case c.Engine == "" && len(c.NATS.URLs) > 0:
		return errors.New("nats: urls are named, and the engine is not; write engine: nats, or engine: embedded to leave NATS alone")
	case c.Engine != "" && c.Engine != Embedded:
		return fmt.Errorf("engine %q is not one of embedded, nats", c.Engine)
	}
	c.Engine = Embedded
	return nil
}

// Check returns c with all defaults filled in; an error says in one line what is wrong.
func (c Config) Check() (Config, error) { return c.withDefaults() }

// ErrExposed is why an address is refused without Insecure.
var ErrExposed = errors.New("it can be reached from other machines")

// authenticates reports whether clients have to say who they are.
func (c *Config) authenticates() bool {
	return len(c.Issuers) > 0 || len(c.Roles) > 0 || c.TLS.ClientCA != ""
}

// exposed refuses to let other machines in without TLS and authentication.
func (c *Config) exposed() error {
	if c.Insecure {
		return nil
	}
	var missing string
	switch {
	case c.TLS.Cert == "" && !c.authenticates():
		missing = "there is no TLS and no authentication"
	case c.TLS.Cert == "":
		missing = "there is no TLS, so that tokens could be read on the way"
	case !c.authenticates():
		missing = "there is no authentication"
	}
	if err := loopback(c.Listen, missing); err != nil {
		return err
	}
	return loopback(c.Admin, "metrics have neither TLS nor authentication")
}

// reachable refuses to announce an address that is none to others.
func (c *Config) reachable() error {
	if c.Advertise == "" {
		if c.Announce != nil && wildcard(c.Listen) {
			return fmt.Errorf("advertise: %s is no address that others reach; write the one that they do", c.Listen)
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(c.Advertise); err != nil || wildcard(c.Advertise) || port == "0" {
		return fmt.Errorf("advertise: %s is no address that others reach; write HOST:PORT", c.Advertise)
	}
	return nil
}

// wildcard reports whether an address stands for all of this machine's.
func wildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

// loopback refuses an address that other machines can reach if something is missing.
func loopback(address, missing string) error {
	if address == "off" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("bad address %q: it must be HOST:PORT", address)
	}
	if ip := net.ParseIP(host); missing == "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("will not listen on %s: %w, and %s; --insecure allows it all the same", address, ErrExposed, missing)
}

// over fills in n from defaults and checks it.
func (n Namespace) over(d Namespace) (Namespace, error) {
	set(&n.History, d.History)
	set(&n.MaxEvents, d.MaxEvents)
	set(&n.MaxBytes, d.MaxBytes)
	set(&n.MaxAge, d.MaxAge)
	set(&n.DedupWindow, d.DedupWindow)
	set(&n.DedupIDs, d.DedupIDs)
	set(&n.Overflow, d.Overflow)
	set(&n.MaxLag, d.MaxLag)
	set(&n.MaxLagAge, d.MaxLagAge)
	set(&n.PublishRate, d.PublishRate)
	set(&n.PublishBytes, d.PublishBytes)
	set(&n.Subscriptions, d.Subscriptions)
	if n.Policies == nil {
		n.Policies = d.Policies
	}
	switch engine.History(n.History) {
	case engine.HistoryDisk, engine.HistoryOS, engine.HistoryMemory, engine.HistoryNone:
	default:
		return n, fmt.Errorf("history %q is not one of disk, os, memory, none", n.History)
	}
	for _, p := range append([]string{n.Overflow}, n.Policies...) {
		if _, ok := policies[p]; !ok {
			return n, fmt.Errorf("policy %q is not one of catch-up, drop-oldest, conflate, disconnect", p)
		}
	}
	return n, nil
}
