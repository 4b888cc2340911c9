package pebbleengine

import (
	"slices"
	"strings"

	"github.com/runnelhq/runnel/internal/engine"
)

// NamespaceState is a namespace whose log is open, for operators.
type NamespaceState struct {
	Namespace string
	engine.State
	Bytes uint64 // that its events and their index take, estimated; 0 while that cannot be read
}

// Namespaces describes the namespaces whose logs are open, by name.
func (e *Engine) Namespaces() []NamespaceState {
	var logs []*log
	e.mu.Lock()
	for _, o := range e.opens {
		select {
		case <-o.done:
			if o.log != nil {
				logs = append(logs, o.log)
			}
		default: // about to be opened
		}
	}
	e.mu.Unlock()
	list := make([]NamespaceState, 0, len(logs))
	for _, l := range logs {
		n := NamespaceState{Namespace: l.name, State: l.State()}
		if l.st != nil {
			n.Bytes = l.bytes()
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b NamespaceState) int { return strings.Compare(a.Namespace, b.Namespace) })
	return list
}

// bytes estimates what the log takes.
func (l *log) bytes() uint64 {
	db, err := l.st.acquire()
	if err != nil {
		return 0
	}
	defer l.st.release()
	var total uint64
	for _, kind := range []byte{kindLog, kindIndex, kindTopic, kindDedup} {
		p := prefix(kind, l.id)
		if n, err := db.EstimateDiskUsage(p, after(p)); err == nil {
			total += n
		}
	}
	return total
}
