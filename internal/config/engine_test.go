package config

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/runnelhq/runnel/server"
)

// Everything about NATS can be written in the file, as a variable, and what it takes to try it as flags; secrets are never shown.
func TestNATS(t *testing.T) {
	path := write(t, "nats:\n  urls: [nats://a:1, tls://b]\n  user: me\n  tls: {ca: ca.pem}\n  replicas: 1\n  prefix: p\n")
	for _, file := range []string{"ca.pem", "c.pem", "k.pem"} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := good(t, path, []string{"--engine=nats", "--node=web-1", "--nats-urls=nats://c:1,d"}, "RUNNEL_NATS_PASSWORD=s3cret", "RUNNEL_NATS_TLS_CERT=c.pem", "RUNNEL_NATS_TLS_KEY=k.pem",
		"RUNNEL_NATS_SERVICE_HOST=10.0.0.1", "RUNNEL_NATS_PORT_4222_TCP=tcp://10.0.0.1:4222") // the last two are of Kubernetes
	s := c.Server
	want := server.NATS{
		URLs: []string{"nats://c:1", "d"}, User: "me", Password: "s3cret", TLS: server.NATSTLS{CA: "ca.pem", Cert: "c.pem", Key: "k.pem"}, Replicas: 1, Prefix: "p",
	}
	if s.Engine != server.OnNATS || s.Node != "web-1" || !strings.HasPrefix(s.NATS.URLs[0], "nats://c") || s.NATS.User != want.User || s.NATS.Password != want.Password ||
		s.NATS.TLS != want.TLS || s.NATS.Replicas != 1 || s.NATS.Prefix != "p" || len(s.NATS.URLs) != 2 {
		t.Errorf("got  %+v\nwant %+v", s.NATS, want)
	}
	if s.Limits.MaxPayloadBytes != 896<<10 {
		t.Errorf("payloads of up to %d do not fit into what NATS takes by default", s.Limits.MaxPayloadBytes)
	}
	var b bytes.Buffer
	if err := c.Show(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "s3cret") || !strings.Contains(b.String(), "  password: (hidden)") || !strings.Contains(b.String(), "max_payload_bytes: 896KiB") {
		t.Errorf("shown:\n%s", b.String())
	}
	if c := good(t, path, []string{"--engine=nats"}, "RUNNEL_LIMITS_MAX_PAYLOAD_BYTES=2MiB"); c.Server.Limits.MaxPayloadBytes != 2<<20 {
		t.Errorf("what was written does not count: %d", c.Server.Limits.MaxPayloadBytes)
	}
	good(t, path, []string{"--engine=embedded"}) // on purpose
}

// What is wrong about NATS has its line, and holds no secret.
func TestNATSProblems(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no servers":         {"data: x\nengine: nats\n", `r.yaml:2: engine: nats needs nats.urls (--nats-urls): the servers of the NATS cluster, as nats://HOST:4222`},
		"the other engine":   {"nats:\n  urls: [nats://a:1]\n", `r.yaml:2: nats.urls: is for engine nats, and the engine is embedded; write engine: nats, or engine: embedded to leave NATS alone`},
		"engine":             {"engine: kafka\n", `r.yaml:1: engine: "kafka" is not one of embedded, nats`},
		"a key":              {"engine: nats\nnats:\n  url: x\n", `r.yaml:3: unknown key nats.url; known here: credentials, nkey, password, prefix, replicas, tls, token, urls, user`},
		"a secret in a URL":  {"engine: nats\nnats:\n  urls: [\"nats://me:s3cret@a:1\"]\n", `r.yaml:3: nats.urls: one holds a user or token; write these as nats.user, nats.password or nats.token`},
		"a secret, no URL":   {"engine: nats\nnats:\n  urls: \"nats://me:s3cret@[\"\n", `r.yaml:3: nats.urls: one holds a user or token; write these as nats.user, nats.password or nats.token`},
		"an odd URL":         {"engine: nats\nnats:\n  urls: http://a\n", `r.yaml:3: nats.urls: "http://a" is no address of a NATS server; write nats://HOST:4222, or tls:// where it begins with TLS`},
		"an unprintable one": {"engine: nats\nnats:\n  urls: a\n  password: \"s3cret\\t\"\n", `r.yaml:4: nats.password: it is not one line of printable text`},
		"replicas":           {"engine: nats\nnats:\n  urls: a\n  replicas: 2\n", `r.yaml:4: nats.replicas: 2 is not one of 1, 3, 5`},
		"two ways":           {"engine: nats\nnats:\n  urls: a\n  token: x\n  nkey: y\n", `r.yaml:4: nats.nkey and nats.token exclude each other; give one`},
		"half a certificate": {"engine: nats\nnats:\n  urls: a\n  tls:\n    cert: y\n", `nats: tls: cert and key go together; one is missing`},
		"no such file":       {"engine: nats\nnats:\n  urls: a\n  tls:\n    ca: no.pem\n", `nats: tls: ca: open no.pem: no such file or directory`},
		"a prefix":           {"engine: nats\nnats:\n  urls: a\n  prefix: a.b\n", `nats: prefix "a.b" is not one token of letters, digits and _ - : @ = +`},
		"a node":             {"node: a b\n", `r.yaml:1: node: "a b" is no node id; write letters, digits, -, _ and dots, at most 64`},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := Load(write(t, c.text), nil, nil)
			var got []string
			for _, p := range problems {
				got = append(got, p.Error())
			}
			if strings.Join(got, "\n") != c.want || strings.Contains(strings.Join(got, ""), "s3cret") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
	if _, err := os.Stat("data"); err == nil {
		t.Error("reading a configuration made a data directory")
	}
}
