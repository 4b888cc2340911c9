package config

import (
	"errors"
	"strings"

	"github.com/runnelhq/runnel/server"
)

// forEngine leaves to the server what depends on the engine where nothing is written.
func (l *loader) forEngine(c *Config) {
	if c.Server.Engine == server.OnNATS && l.sources["limits.max_payload_bytes"] == "" {
		c.Server.Limits.MaxPayloadBytes = 0
	}
}

// crossEngine checks that the engine has what it needs, and that nobody takes one for the other.
func (l *loader) crossEngine(c *Config) {
	const urls = "nats.urls"
	n := &c.Server.NATS
	switch {
	case c.Server.Engine == server.OnNATS && len(n.URLs) == 0:
		l.problem(l.sources["engine"], "engine: nats needs nats.urls (--nats-urls): the servers of the NATS cluster, as nats://HOST:4222")
	case c.Server.Engine != server.OnNATS && len(n.URLs) > 0 && l.sources["engine"] == "":
		l.problem(l.sources[urls], "%s: is for engine nats, and the engine is embedded; write engine: nats, or engine: embedded to leave NATS alone", urls)
	case n.Replicas == 2 || n.Replicas == 4:
		l.problem(l.sources["nats.replicas"], "nats.replicas: %d is not one of 1, 3, 5", n.Replicas)
	}
	var ways []string
	for _, key := range []string{"nats.credentials", "nats.nkey", "nats.user", "nats.token"} {
		if l.sources[key] != "" {
			ways = append(ways, key)
		}
	}
	if len(ways) > 1 {
		l.problem(l.sources[ways[1]], "%s exclude each other; give one", strings.Join(ways, " and "))
	}
}

// addresses are those of NATS servers.
type addresses struct{ texts }

// Set looks at each address before it could be shown in an error: it may hold a secret, which is the error then.
func (v addresses) Set(s string) error {
	for one := range strings.SplitSeq(s, ",") {
		if err := server.CheckNATSURL(strings.TrimSpace(one)); err != nil {
			return err
		}
	}
	return v.texts.Set(s)
}

// secret is text that is never shown.
type secret struct{ p *string }

func (v secret) Set(s string) error {
	if text(v).Set(s) != nil {
		return errors.New("it is not one line of printable text")
	}
	return nil
}

func (v secret) String() string { return "(hidden)" }

// node is the id of a server among others.
type node struct{ text }

func (v node) Set(s string) error {
	if err := server.CheckNode(s); err != nil {
		return err
	}
	*v.p = s
	return nil
}
