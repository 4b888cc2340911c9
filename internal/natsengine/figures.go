package natsengine

import (
	"slices"
	"strings"

	"github.com/runnelhq/runnel/internal/engine"
)

// Opened returns a namespace's log if it is open, else nil.
func (e *Engine) Opened(namespace string) engine.Log {
	if l, ok := e.opens.Opened(namespace); ok {
		return l
	}
	return nil
}

// Namespaces describes the namespaces whose logs are open, by name.
func (e *Engine) Namespaces() []engine.NamespaceState {
	var list []engine.NamespaceState
	for _, l := range e.opens.All(false) {
		l.mu.Lock()
		list = append(list, engine.NamespaceState{Namespace: l.name, State: l.stateLocked(), Bytes: l.bytes})
		l.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b engine.NamespaceState) int { return strings.Compare(a.Namespace, b.Namespace) })
	return list
}

// Figures says how many logs are open, and whether NATS takes events. Its disks are its own.
func (e *Engine) Figures() engine.Figures {
	return engine.Figures{Namespaces: len(e.opens.All(false)), Failed: e.Health() != nil}
}

// Configure asks for the configurations of all open namespaces again and puts their limits in force, soon. Their history stays as it is, and
// so does a namespace that is gone.
func (e *Engine) Configure() {
	for _, l := range e.opens.All(true) { // what is about to be opened may have asked before
		cfg, ok := e.o.Namespace(l.name)
		if !ok {
			continue
		}
		cfg.History = l.cfg.Load().History
		l.cfg.Store(&cfg)
		if !l.kept || e.enter() != nil {
			continue
		}
		e.group.Go(func() {
			defer e.appends.Done()
			if _, err := e.found(l.ctx, l.name, e.o.settings(l.name, cfg)); err != nil && l.ctx.Err() == nil {
				e.o.Logger.Error("the new limits of a namespace are not in force", "namespace", l.name, "err", oneLine(err))
			}
		})
	}
}
