package natsengine

import (
	"sync"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

// known is an id of an event without history, and the event itself, which may still be on its way.
type known struct {
	id      string // empty: the event has none that counts
	sending *sending
	at      time.Time
}

// ids are the event ids that this node remembers of a log without history, for a window of time and at most a number of them.
type ids struct {
	window time.Duration
	most   int

	mu    sync.Mutex
	known map[string]*known
	queue []*known // oldest first
}

func newIDs(cfg engine.Config) *ids {
	d := &ids{window: cfg.DedupWindow, most: cfg.DedupIDs, known: map[string]*known{}}
	if d.window <= 0 {
		d.window = defaultDedupWindow
	}
	if d.most <= 0 {
		d.most = defaultDedupIDs
	}
	return d
}

// claim returns who publishes an id: the caller, or somebody before it.
func (d *ids) claim(id string, s *sending) (k *known, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if k := d.known[id]; k != nil && now.Sub(k.at) <= d.window {
		return k, false
	}
	for len(d.queue) > 0 && (len(d.queue) >= d.most || now.Sub(d.queue[0].at) > d.window) {
		if old := d.queue[0]; d.known[old.id] == old {
			delete(d.known, old.id)
		}
		d.queue[0] = nil
		d.queue = d.queue[1:]
	}
	k = &known{id: id, sending: s, at: now}
	d.known[id] = k
	d.queue = append(d.queue, k)
	return k, true
}

// forget gives up ids whose events did not come back.
func (d *ids) forget(list []*known) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range list {
		if !k.sending.isSeen() && d.known[k.id] == k {
			delete(d.known, k.id)
		}
	}
}
