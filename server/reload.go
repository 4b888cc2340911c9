package server

import (
	"errors"
	"reflect"
)

// Reload puts the roles and limits of cfg in force, for clients that are here too: subscriptions that are no longer allowed end in band. It
// returns what else differs from the configuration the server runs with, by the names of Config's fields, and needs a restart. An error
// changes nothing. Safe for concurrent use, also while Run runs.
func (s *Server) Reload(cfg Config) (restart []string, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	authority, err := cfg.Authority()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if (authority.policy == nil) != (s.security.authority.policy == nil) {
		return nil, errors.New("authentication cannot be switched on or off while the server runs; restart it")
	}
	if authority.policy != nil {
		s.security.guard.SetPolicy(authority.policy)
	}
	s.security.limiter.Set(s.security.limits(&cfg))
	s.security.gate.Set(cfg.Limits.MaxConnections, cfg.Limits.MaxConnectionsPerAddress)
	return differing(s.cfg, cfg), nil
}

// differing lists the fields that only a restart changes.
func differing(old, next Config) (names []string) {
	for _, c := range []*Config{&old, &next} {
		c.Roles, c.Logger, c.Listener, c.Reread, c.Text, c.Version = nil, nil, nil, nil, nil, ""
		l := Limits{
			MaxPayloadBytes: c.Limits.MaxPayloadBytes, MaxHeadersBytes: c.Limits.MaxHeadersBytes, MaxSubscriptions: c.Limits.MaxSubscriptions,
			MaxStreamsPerConnection: c.Limits.MaxStreamsPerConnection, MaxNamespaces: c.Limits.MaxNamespaces, MemoryBytes: c.Limits.MemoryBytes,
		}
		c.Limits = l
		c.Defaults = c.Defaults.withoutLimits()
		all := make(map[string]Namespace, len(c.Namespaces))
		for name, n := range c.Namespaces {
			all[name] = n.withoutLimits()
		}
		c.Namespaces = all
	}
	a, b := reflect.ValueOf(old), reflect.ValueOf(next)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, a.Type().Field(i).Name)
		}
	}
	return names
}

func (n Namespace) withoutLimits() Namespace {
	n.PublishRate, n.PublishBytes, n.Subscriptions = 0, 0, 0
	return n
}
