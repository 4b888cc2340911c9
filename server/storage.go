package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine"
	"github.com/runnelhq/runnel/internal/pebbleengine"
	"github.com/runnelhq/runnel/internal/topic"
)

// The words of Config.Engine.
const (
	Embedded = "embedded" // a log in the data directory, for one server
	OnNATS   = "nats"     // logs on a NATS JetStream cluster, for any number of servers
)

// NATS is the JetStream cluster that keeps the logs where Engine is OnNATS. At most one of Credentials, NKey, User and Token is set.
type NATS struct {
	URLs           []string // of its servers: nats://HOST:PORT, tls://HOST:PORT or HOST:PORT
	Credentials    string   // file with this server's JWT and its seed (.creds)
	NKey           string   // file with the seed of an NKEY
	User, Password string
	Token          string
	TLS            NATSTLS
	Replicas       int    // NATS servers that keep each event: 1, or 3 (default) or 5 of a cluster
	Prefix         string // begins the names of streams and subjects; default runnel. Servers with different prefixes share nothing
}

// NATSTLS are the files of TLS towards NATS, in PEM. They are read when a connection is made.
type NATSTLS struct {
	CA        string // certificates that NATS servers are checked against; default the system's
	Cert, Key string // this server's own, where NATS asks for one
}

// natsPayload is the default of MaxPayloadBytes on NATS: with its headers such an event fits into the 1 MiB that NATS servers take by default.
const natsPayload = 896 << 10

// checkTimeout bounds how long a start looks at the streams of namespaces.
const checkTimeout = 20 * time.Second

// storage is an engine, and what operators want to know of it and may do with it while it runs.
type storage interface {
	engine.Engine
	// Opened returns a namespace's log if it is open, else nil.
	Opened(namespace string) engine.Log
	// Namespaces describes the namespaces whose logs are open, by name.
	Namespaces() []engine.NamespaceState
	Figures() engine.Figures
	// Configure puts namespaces' limits in force as they are configured now.
	Configure()
}

// open opens the engine.
func (s *Server) open() (storage, error) {
	if s.cfg.Engine == OnNATS {
		return s.openNATS()
	}
	return pebbleengine.Open(pebbleengine.Options{
		Dir: s.cfg.Data, Logger: s.cfg.Logger, MaxNamespaces: s.cfg.Limits.MaxNamespaces, Namespace: s.engineConfig,
	})
}

func (s *Server) openNATS() (storage, error) {
	n := &s.cfg.NATS
	if err := n.checkFiles(); err != nil {
		return nil, err
	}
	e, err := natsengine.Open(natsengine.Options{
		URLs: n.URLs, Name: s.node, Replicas: n.Replicas, Prefix: n.Prefix,
		Credentials: natsengine.Credentials{
			User: n.User, Password: n.Password, Token: n.Token, NKeySeed: n.NKey, CredsFile: n.Credentials,
			CA: n.TLS.CA, Cert: n.TLS.Cert, Key: n.TLS.Key,
		},
		Namespace: s.engineConfig, Logger: s.cfg.Logger, MaxNamespaces: s.cfg.Limits.MaxNamespaces,
		MaxEvent: s.cfg.Limits.MaxPayloadBytes + requestExtra, // no request that is larger comes in
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	if err := e.Check(ctx, slices.Collect(maps.Keys(s.cfg.Namespaces))); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// check says in one line what is wrong.
func (n *NATS) check() error {
	if len(n.URLs) == 0 {
		return errors.New("nats: urls is missing; name the servers of the NATS cluster, as nats://HOST:4222")
	}
	for _, u := range n.URLs {
		if err := CheckNATSURL(u); err != nil {
			return fmt.Errorf("nats: urls: %w", err)
		}
	}
	ways := 0
	for _, way := range []string{n.Credentials, n.NKey, n.User, n.Token} {
		if way != "" {
			ways++
		}
	}
	if _, err := topic.ParseNamespace(n.Prefix); err != nil {
		return fmt.Errorf("nats: prefix %q is not one token of letters, digits and _ - : @ = +", n.Prefix)
	}
	switch {
	case ways > 1:
		return errors.New("nats: credentials, nkey, user and token exclude each other; give one")
	case n.Password != "" && n.User == "":
		return errors.New("nats: password needs a user")
	case (n.TLS.Cert == "") != (n.TLS.Key == ""):
		return errors.New("nats: tls: cert and key go together; one is missing")
	case n.Replicas != 1 && n.Replicas != 3 && n.Replicas != 5:
		return fmt.Errorf("nats: replicas %d is not one of 1, 3, 5", n.Replicas)
	}
	return nil
}

// checkFiles says which file cannot be read.
func (n *NATS) checkFiles() error {
	for _, f := range []struct{ key, path string }{
		{"credentials", n.Credentials}, {"nkey", n.NKey}, {"tls: ca", n.TLS.CA}, {"tls: cert", n.TLS.Cert}, {"tls: key", n.TLS.Key},
	} {
		if f.path == "" {
			continue
		}
		file, err := os.Open(f.path)
		if err != nil {
			return fmt.Errorf("nats: %s: %w", f.key, err)
		}
		file.Close() // it was only opened
	}
	return nil
}

// CheckNATSURL says what is wrong with the address of a NATS server. It must hold no secret, since addresses are shown.
func CheckNATSURL(s string) error {
	if strings.Contains(s, "@") {
		return errors.New("one holds a user or token; write these as nats.user, nats.password or nats.token")
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		if u, err = url.Parse("nats://" + s); err != nil {
			return errors.New("one is no address; write nats://HOST:4222")
		}
	}
	if u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%.64q is no address of a NATS server; write nats://HOST:4222, or tls:// where it begins with TLS", s)
	}
	return nil
}

// CheckNode says what is wrong with the id of a node.
func CheckNode(id string) error {
	if id == "" || len(id) > maxNode || plainNode(id) != id {
		return fmt.Errorf("%.64q is no node id; write letters, digits, -, _ and dots, at most %d", id, maxNode)
	}
	return nil
}

const maxNode = 64

// plainNode is s with whatever an id must not hold replaced.
func plainNode(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			b[i] = '-'
		}
	}
	return string(b)
}

// nodeID is who this server is among others: what is configured, else its machine and port, which stay the same when it restarts.
func nodeID(configured, host string, address net.Addr) string {
	if configured != "" {
		return configured
	}
	port := ""
	if t, ok := address.(*net.TCPAddr); ok {
		port = fmt.Sprintf("-%d", t.Port)
	}
	host = plainNode(host)
	return host[:min(len(host), maxNode-len(port))] + port
}
