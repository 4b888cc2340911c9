package pebbleengine

import (
	"slices"
	"strings"

	"github.com/runnelhq/runnel/internal/engine"
)

// Namespaces describes the namespaces whose logs are open, by name.
func (e *Engine) Namespaces() []engine.NamespaceState {
	logs := e.opens.All(false)
	list := make([]engine.NamespaceState, 0, len(logs))
	for _, l := range logs {
		n := engine.NamespaceState{Namespace: l.name, State: l.State()}
		if l.st != nil {
			n.Bytes = l.bytes()
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b engine.NamespaceState) int { return strings.Compare(a.Namespace, b.Namespace) })
	return list
}

// bytes is what the values of the retained events take; 0 while that cannot be read.
func (l *log) bytes() uint64 {
	db, err := l.st.acquire()
	if err != nil {
		return 0
	}
	defer l.st.release()
	s := l.State()
	last, err := l.loadLast(db)
	if err != nil || s.Oldest > s.Head {
		return 0
	}
	oldest, err := marks{l: l, db: db, head: last.offset, total: last.total}.find(s.Oldest)
	if err != nil {
		return 0
	}
	return last.total - min(oldest.before, last.total)
}
