package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// Poll is a parser of long polling: HTTP/1.1 responses whose bodies hold a number, that of their last event, and events with
// their lengths. Behind each response it asks for what follows.
type Poll struct {
	to    Events
	topic string
	rest  pending
	reply []byte
}

// NewPoll returns a parser.
func NewPoll(to Events, topic string) *Poll { return &Poll{to: to, topic: topic} }

// PollRequest asks for the events of a topic after a number.
func PollRequest(b []byte, topic string, after uint64) []byte {
	return fmt.Appendf(b, "GET /poll?topic=%s&after=%d HTTP/1.1\r\nHost: bench\r\n\r\n", topic, after)
}

var (
	errResponse   = errors.New("not a response to a poll")
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("Content-Length: ")
)

// Feed implements Parser.
func (p *Poll) Feed(b []byte) ([]byte, error) {
	b = p.rest.join(b)
	p.reply = p.reply[:0]
	for {
		i := bytes.Index(b, headEnd)
		if i < 0 {
			break
		}
		head, body := b[:i+2], b[i+4:]
		n, err := length(head)
		if err != nil {
			return nil, err
		}
		if len(body) < n {
			break
		}
		if err := p.events(body[:n]); err != nil {
			return nil, err
		}
		b = body[n:]
	}
	p.rest.keep(b)
	return p.reply, nil
}

func length(head []byte) (int, error) {
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return 0, fmt.Errorf("the server says %.60q", head)
	}
	i := bytes.Index(head, contentLength)
	if i < 0 {
		return 0, errResponse
	}
	line := head[i+len(contentLength):]
	n, err := strconv.Atoi(string(line[:bytes.IndexByte(line, '\r')]))
	if err != nil || n < 8 || n > maxEvent {
		return 0, errResponse
	}
	return n, nil
}

func (p *Poll) events(body []byte) error {
	after := binary.LittleEndian.Uint64(body)
	for body = body[8:]; len(body) > 0; {
		if len(body) < 4 {
			return errResponse
		}
		n := int(binary.LittleEndian.Uint32(body))
		if len(body)-4 < n {
			return errResponse
		}
		p.to.Event(body[4 : 4+n])
		body = body[4+n:]
	}
	p.reply = PollRequest(p.reply, p.topic, after)
	return nil
}
