package server

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode"
)

// Reload puts cfg's roles, limits and namespaces in force, for clients that are here too: subscriptions that are no longer allowed end in
// band, and what is beyond a new retention goes. It returns what else differs from the configuration the server runs with and needs a
// restart, as a configuration file names it: a namespace's history, for example, or a namespace that is gone. An error changes nothing. Safe
// for concurrent use, also while Run runs.
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
		s.security.guard.Load().SetPolicy(authority.policy)
	}
	s.security.limiter.Set(s.security.limits(&cfg))
	s.mostSessions.Store(int64(cfg.Limits.ServerSessions))
	s.security.gate.Set(cfg.Limits.MaxConnections, cfg.Limits.MaxConnectionsPerAddress)
	spaces, kept := s.spaces.Load().next(&cfg)
	s.spaces.Store(spaces)
	s.engine.Configure()
	if cfg.Reloaded != nil {
		cfg.Reloaded()
	}
	return append(differing(s.cfg, cfg), kept...), nil
}

// spaces is what is configured about namespaces. It is never changed.
type spaces struct {
	named    map[string]Namespace
	defaults Namespace
	dev      bool
}

func newSpaces(cfg *Config) *spaces {
	return &spaces{maps.Clone(cfg.Namespaces), cfg.Defaults, cfg.Dev}
}

// of is a namespace's configuration; false if there is none.
func (s *spaces) of(name string) (Namespace, bool) {
	if n, ok := s.named[name]; ok {
		return n, true
	}
	return s.defaults, s.dev
}

// next is what cfg makes of s while the server runs, and what it has to keep.
func (s *spaces) next(cfg *Config) (next *spaces, kept []string) {
	next = newSpaces(cfg)
	next.dev = s.dev
	if next.defaults.History != s.defaults.History {
		next.defaults.History = s.defaults.History
		kept = append(kept, "defaults.history")
	}
	if next.named == nil {
		next.named = map[string]Namespace{}
	}
	for _, name := range slices.Sorted(maps.Keys(s.named)) {
		if _, ok := next.named[name]; !ok {
			next.named[name] = s.named[name]
			kept = append(kept, "namespaces."+name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next.named)) {
		// With dev one that is new here may be open since long.
		if old, ok := s.of(name); ok && old.History != next.named[name].History {
			n := next.named[name]
			n.History = old.History
			next.named[name] = n
			kept = append(kept, "namespaces."+name+".history")
		}
	}
	return next, kept
}

// differing lists the settings that only a restart changes, but for namespaces.
func differing(old, next Config) (names []string) {
	for _, c := range []*Config{&old, &next} {
		c.Roles, c.Logger, c.Listener, c.Reread, c.Reloaded, c.Text, c.Announce, c.Version, c.Namespaces, c.Defaults = nil, nil, nil, nil, nil, nil, nil, "", nil, Namespace{}
		l := Limits{
			MaxPayloadBytes: c.Limits.MaxPayloadBytes, MaxHeadersBytes: c.Limits.MaxHeadersBytes, MaxSubscriptions: c.Limits.MaxSubscriptions,
			MaxStreamsPerConnection: c.Limits.MaxStreamsPerConnection, MaxNamespaces: c.Limits.MaxNamespaces, MemoryBytes: c.Limits.MemoryBytes,
		}
		c.Limits = l
	}
	a, b := reflect.ValueOf(old), reflect.ValueOf(next)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, key(a.Type().Field(i).Name))
		}
	}
	return names
}

// key is how a configuration file names a field: DrainTimeout is drain_timeout.
func key(field string) string {
	var b strings.Builder
	lower := false
	for _, r := range field {
		if unicode.IsUpper(r) && lower {
			b.WriteByte('_')
		}
		lower = unicode.IsLower(r)
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
