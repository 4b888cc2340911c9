package wire

import (
	"encoding/binary"
	"errors"
)

// Framed is a parser of events with a length of four bytes before each, the least that a protocol on TCP can be. The first, empty one
// says that the subscription stands.
type Framed struct {
	to   Events
	rest pending
}

// NewFramed returns a parser.
func NewFramed(to Events) *Framed { return &Framed{to: to} }

// maxEvent is the largest event that any parser takes.
const maxEvent = 64 << 20

var errTooLarge = errors.New("an event is larger than 64 MiB: the stream is broken")

// Feed implements Parser.
func (p *Framed) Feed(b []byte) ([]byte, error) {
	b = p.rest.join(b)
	for len(b) >= 4 {
		n := int(binary.LittleEndian.Uint32(b))
		if n > maxEvent {
			return nil, errTooLarge
		}
		if len(b) < 4+n {
			break
		}
		if n == 0 {
			p.to.Ready()
		} else {
			p.to.Event(b[4 : 4+n])
		}
		b = b[4+n:]
	}
	p.rest.keep(b)
	return nil, nil
}

// AppendFramed appends an event as Framed reads it.
func AppendFramed(b, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}
