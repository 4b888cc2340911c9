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
	Data     string // data directory; default "data"
	Insecure bool   // allows addresses other than loopback
	Dev      bool   // namespaces appear on first use, with Defaults

	DrainTimeout time.Duration // at most this until a stop is forced; default 30 s
	SendTimeout  time.Duration // a client that takes nothing for this long is cut; default 30 s

	Limits     Limits
	Defaults   Namespace            // what Namespaces leave out
	Namespaces map[string]Namespace // by name

	Logger *slog.Logger // default: discard

	// Listener, if set, is used in place of Listen: for tests, and for sockets that come from outside.
	Listener net.Listener
}

// Limits bound what clients may do.
type Limits struct {
	MaxPayloadBytes         int // of an event; default 1 MiB
	MaxHeadersBytes         int // of an event; default 16 KiB
	MaxSubscriptions        int // of a session; default 100
	MaxStreamsPerConnection int // default 1,000
	MaxNamespaces           int // default 1,000
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
}

var policies = map[string]runnelv1.OverflowPolicy{
	"catch-up":    runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP,
	"conflate":    runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE,
	"drop-oldest": runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST,
	"disconnect":  runnelv1.OverflowPolicy_OVERFLOW_POLICY_DISCONNECT,
}

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
	set(&c.SendTimeout, 30*time.Second)
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
	if !c.Insecure {
		for _, address := range []string{c.Listen, c.Admin} {
			if err := loopback(address); err != nil {
				return c, err
			}
		}
	}
	var err error
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

// Check returns c with all defaults filled in; an error says in one line what is wrong.
func (c Config) Check() (Config, error) { return c.withDefaults() }

// ErrNotLoopback is why an address is refused without Insecure.
var ErrNotLoopback = errors.New("it can be reached from other machines, and there is no TLS and no authentication")

func loopback(address string) error {
	if address == "off" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("bad address %q: it must be HOST:PORT", address)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("will not listen on %s: %w; --insecure allows it all the same", address, ErrNotLoopback)
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

// namespace is a namespace's configuration; false if there is none.
func (c *Config) namespace(name string) (Namespace, bool) {
	if n, ok := c.Namespaces[name]; ok {
		return n, true
	}
	return c.Defaults, c.Dev
}
