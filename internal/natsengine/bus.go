package natsengine

import (
	"sync"

	"github.com/nats-io/nats.go"
)

// What may wait of messages between nodes, before they are dropped.
const (
	busMessages = 8192
	busBytes    = 8 << 20
)

// Bus carries small messages between the nodes of a prefix, over core NATS: each reaches every node that listens, the sender too, or is lost.
// No topic can be a bus: names of topics hold no $.
type Bus struct {
	l       *link
	subject string
}

// Bus returns the bus of that name.
func (e *Engine) Bus(name string) *Bus { return &Bus{e.write, e.o.Prefix + ".$" + name} }

// Send sends a message. Without a connection it fails at once.
func (b *Bus) Send(message []byte) error {
	if err := b.l.nc.Publish(b.subject, message); err != nil {
		return sendError(err)
	}
	return nil
}

// Listen calls f with each message, one after the other, until stop, which waits for a call that runs; f must not call it.
func (b *Bus) Listen(f func(message []byte)) (stop func(), err error) {
	var mu sync.Mutex
	over := false
	sub, err := b.l.nc.Subscribe(b.subject, func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			f(m.Data)
		}
	})
	if err != nil {
		return nil, sendError(err)
	}
	if err := sub.SetPendingLimits(busMessages, busBytes); err != nil {
		return nil, sendError(err)
	}
	return func() {
		b.l.unsubscribe(sub)
		mu.Lock()
		defer mu.Unlock()
		over = true
	}, nil
}
