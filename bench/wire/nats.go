package wire

import (
	"bytes"
	"fmt"
	"strconv"
)

// NATS is a parser of the NATS client protocol, as far as a subscriber needs it.
type NATS struct {
	to    Events
	api   bool // subscription 2 brings the answer to a request, which says that subscription 1 stands
	rest  pending
	reply []byte
}

// NewNATS returns a parser.
func NewNATS(to Events) *NATS { return &NATS{to: to} }

// NewJetStream returns a parser of a connection that has asked for a consumer: the answer comes on subscription 2.
func NewJetStream(to Events) *NATS { return &NATS{to: to, api: true} }

// NATSSubscribe is what a subscriber of a subject writes. The answer to the PING says that the subscription stands.
func NATSSubscribe(subject string) []byte {
	return fmt.Appendf(nil, "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\",\"protocol\":1}\r\nSUB %s 1\r\nPING\r\n", subject)
}

var crlf = []byte("\r\n")

// Feed implements Parser.
func (p *NATS) Feed(b []byte) ([]byte, error) {
	b = p.rest.join(b)
	p.reply = p.reply[:0]
	for {
		i := bytes.Index(b, crlf)
		if i < 0 {
			break
		}
		line, behind := b[:i], b[i+2:]
		switch {
		case bytes.HasPrefix(line, []byte("MSG ")):
			n, err := strconv.Atoi(string(line[bytes.LastIndexByte(line, ' ')+1:]))
			if err != nil || n < 0 || n > maxEvent {
				return nil, fmt.Errorf("bad line %q", line)
			}
			if len(behind) < n+2 {
				p.rest.keep(b)
				return p.reply, nil
			}
			if err := p.message(line, behind[:n]); err != nil {
				return nil, err
			}
			behind = behind[n+2:]
		case bytes.HasPrefix(line, []byte("PING")):
			p.reply = append(p.reply, "PONG\r\n"...)
		case bytes.HasPrefix(line, []byte("PONG")):
			if !p.api {
				p.to.Ready()
			}
		case bytes.HasPrefix(line, []byte("-ERR")):
			return nil, fmt.Errorf("the server says %s", line)
		}
		b = behind
	}
	p.rest.keep(b)
	return p.reply, nil
}

// message takes a MSG: subject, subscription and perhaps a subject for answers stand in its line.
func (p *NATS) message(line, payload []byte) error {
	if !p.api {
		p.to.Event(payload)
		return nil
	}
	_, behind, _ := bytes.Cut(line[len("MSG "):], []byte(" "))
	if !bytes.HasPrefix(behind, []byte("2 ")) {
		p.to.Event(payload)
		return nil
	}
	if bytes.Contains(payload, []byte(`"error"`)) {
		return fmt.Errorf("the server says %.200s", payload)
	}
	p.to.Ready()
	return nil
}
