package config

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// A server that lists itself says where, as what, and with an address that others reach; what is left out is where it listens.
func TestDiscovery(t *testing.T) {
	const etcd = "discovery:\n  etcd:\n    endpoints: [a:2379, https://b:2379]\n    service: quotes\n"
	c := good(t, write(t, "listen: 127.0.0.1:7\n"+etcd), nil)
	if !slices.Equal(c.Etcd.Endpoints, []string{"a:2379", "https://b:2379"}) || c.Etcd.Service != "quotes" || c.Server.Advertise != "127.0.0.1:7" || c.Server.DrainNotice == 0 {
		t.Errorf("%+v", c)
	}
	var b bytes.Buffer
	if err := c.Show(&b); err != nil {
		t.Fatal(err)
	}
	if again := good(t, write(t, b.String()), nil); !slices.Equal(again.Etcd.Endpoints, c.Etcd.Endpoints) || again.Etcd.Service != "quotes" {
		t.Errorf("%s", &b)
	}
	c = good(t, write(t, etcd), []string{"--advertise=runnel-1.example:50051", "--listen=:50051", "--insecure"}, "RUNNEL_DISCOVERY_ETCD_SERVICE=other")
	if c.Server.Advertise != "runnel-1.example:50051" || c.Etcd.Service != "other" {
		t.Errorf("%+v", c)
	}
	for file, want := range map[string]string{
		"discovery:\n  etcd:\n    service: x\n":                         "r.yaml:3: discovery.etcd.service: discovery.etcd.endpoints is missing; they go together",
		"discovery:\n  etcd:\n    endpoints: [a:1]\n":                   "r.yaml:3: discovery.etcd.endpoints: discovery.etcd.service is missing; they go together",
		"discovery:\n  etcd:\n    endpoints: [a:1]\n    service: a/b\n": `r.yaml:4: discovery.etcd.service: "a/b" is not a name`,
		"discovery:\n  consul: x\n":                                     "r.yaml:2: unknown key discovery.consul; known here: etcd",
		"discovery:\n  etcd:\n    endpoint: x\n":                        "r.yaml:3: unknown key discovery.etcd.endpoint; known here: endpoints, service",
		"insecure: true\nlisten: 0.0.0.0:1\n" + etcd:                    "r.yaml:2: listen: 0.0.0.0:1 stands for all addresses of this machine, and others must be told one; write it as advertise",
		"insecure: true\nlisten: '[::]:1'\n" + etcd:                     "r.yaml:2: listen: [::]:1 stands for all addresses",
		"advertise: 0.0.0.0:1\n" + etcd:                                 "advertise: 0.0.0.0:1 is no address that others reach; write HOST:PORT",
		"advertise: a\n" + etcd:                                         `r.yaml:1: advertise: "a" is not an address`,
	} {
		_, problems := Load(write(t, file), nil, nil)
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), want) {
			t.Errorf("%q: %v", file, problems)
		}
	}
}
