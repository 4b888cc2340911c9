package config

import (
	"net"
	"regexp"
)

var serviceName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// crossDiscovery checks that a server which lists itself says what as, and where it can be reached.
func (l *loader) crossDiscovery(c *Config) {
	const where, what = "discovery.etcd.endpoints", "discovery.etcd.service"
	switch e := &c.Etcd; {
	case len(e.Endpoints) == 0 && e.Service == "":
		return
	case e.Service == "":
		l.problem(l.sources[where], "%s: %s is missing; they go together", where, what)
	case len(e.Endpoints) == 0:
		l.problem(l.sources[what], "%s: %s is missing; they go together", what, where)
	case !serviceName.MatchString(e.Service):
		l.problem(l.sources[what], "%s: %s is not a name; write letters, digits, -, _ and dots, at most 128", what, quote(e.Service))
	}
	if c.Server.Advertise != "" {
		return
	}
	host, port, err := net.SplitHostPort(c.Server.Listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		l.problem(l.sources["listen"], "listen: %s stands for all addresses of this machine, and others must be told one; write it as advertise", c.Server.Listen)
		return
	}
	if port != "0" { // else it is known when the server listens
		c.Server.Advertise = c.Server.Listen
	}
}
