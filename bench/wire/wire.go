// Package wire parses what servers send to a subscriber, protocol by protocol, with as little work as a correct parser can do: a
// receiver that costs more than the server would measure itself.
//
// A Parser belongs to one connection and one goroutine. It is fed whatever a read has brought, in any pieces.
package wire

// Events is told what a parser finds.
type Events interface {
	// Ready: the server has accepted the subscription. It may be called more than once.
	Ready()
	// Event came, with this payload, which is only valid during the call.
	Event(payload []byte)
	// Noticed: the server says that it left out n events.
	Noticed(n int)
}

// Parser takes bytes from one connection. It returns what must be written back, which is only valid until the next call, or an error
// if the server does not keep to its protocol or has refused.
type Parser interface {
	Feed(b []byte) (reply []byte, err error)
}

// pending keeps the beginning of what is not complete yet, between two feeds.
type pending struct{ b []byte }

// join puts b behind what was kept.
func (p *pending) join(b []byte) []byte {
	if len(p.b) == 0 {
		return b
	}
	p.b = append(p.b, b...)
	return p.b
}

// keep remembers rest, which may be a part of what join has returned.
func (p *pending) keep(rest []byte) { p.b = append(p.b[:0], rest...) }
