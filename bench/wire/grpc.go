package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/http2/hpack"
)

// GRPC is a parser of one server-streaming gRPC call on an HTTP/2 connection of its own: frames, flow control with fixed windows, and
// messages, which go to Message.
type GRPC struct {
	to      Events
	message func(to Events, b []byte) error
	headers bool // the response's headers say that the subscription stands

	rest  pending
	reply []byte
	msg   []byte // of the message under way: prefix and what has come
	owed  int    // bytes taken and not yet returned to the windows
}

// NewGRPC returns a parser that hands each message to a function such as StreamResponse or Single. headers: the response's headers
// say that the subscription stands; otherwise a message does.
func NewGRPC(to Events, headers bool, message func(to Events, b []byte) error) *GRPC {
	return &GRPC{to: to, message: message, headers: headers}
}

const (
	window    = 1 << 20 // of the stream and of the connection
	frameHead = 9
	grpcHead  = 5

	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameGoAway       = 7
	frameWindowUpdate = 8

	flagAck        = 1
	flagEndStream  = 1
	flagEndHeaders = 4
	flagPadded     = 8
)

// GRPCCall is what a client writes to open a connection and make one call with one request message.
func GRPCCall(method string, request []byte) []byte { return grpcCall(method, request, flagEndStream) }

// GRPCOpen is GRPCCall for a call on which the client may say more: its side stays open.
func GRPCOpen(method string, request []byte) []byte { return grpcCall(method, request, 0) }

func grpcCall(method string, request []byte, flags byte) []byte {
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method}, {Name: ":authority", Value: "bench"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		if err := enc.WriteField(f); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	b := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	b = appendFrame(b, frameSettings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, window)) // INITIAL_WINDOW_SIZE
	b = appendWindowUpdate(b, 0, window-65535)
	b = appendFrame(b, frameHeaders, flagEndHeaders, 1, head.Bytes())
	data := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
	return appendFrame(b, frameData, flags, 1, append(data, request...))
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func appendWindowUpdate(b []byte, stream, n uint32) []byte {
	return appendFrame(b, frameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, n))
}

// Feed implements Parser.
func (p *GRPC) Feed(b []byte) ([]byte, error) {
	b = p.rest.join(b)
	p.reply = p.reply[:0]
	for len(b) >= frameHead {
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		if len(b) < frameHead+n {
			break
		}
		if err := p.frame(b[3], b[4], b[frameHead:frameHead+n]); err != nil {
			return nil, err
		}
		b = b[frameHead+n:]
	}
	p.rest.keep(b)
	if p.owed >= window/2 {
		p.reply = appendWindowUpdate(p.reply, 0, uint32(p.owed))
		p.reply = appendWindowUpdate(p.reply, 1, uint32(p.owed))
		p.owed = 0
	}
	return p.reply, nil
}

func (p *GRPC) frame(kind, flags byte, b []byte) error {
	switch kind {
	case frameData:
		if flags&flagPadded != 0 {
			return errors.New("padded frames are not expected")
		}
		p.owed += len(b)
		return p.data(b)
	case frameHeaders:
		if flags&flagEndStream != 0 {
			return errors.New("the server has ended the stream: " + trailers(b))
		}
		if p.headers {
			p.to.Ready()
		}
	case frameSettings:
		if flags&flagAck == 0 {
			p.reply = appendFrame(p.reply, frameSettings, flagAck, 0, nil)
		}
	case framePing:
		if flags&flagAck == 0 {
			p.reply = appendFrame(p.reply, framePing, flagAck, 0, b)
		}
	case frameReset, frameGoAway:
		return fmt.Errorf("the server has cut the stream (frame %d: %x)", kind, b)
	}
	return nil
}

// trailers finds the status among the trailers. Those of a long stream refer to a table that this parser does not keep, so it does
// what it can.
func trailers(b []byte) string {
	text := ""
	d := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == "grpc-message" || f.Name == "grpc-status" {
			text += f.Name + " " + f.Value + " "
		}
	})
	if _, err := d.Write(b); err != nil && text == "" {
		return "status unknown"
	}
	return text
}

// data takes messages out of the stream of DATA frames. One that lies in a frame as a whole is not copied.
func (p *GRPC) data(b []byte) error {
	for len(b) > 0 {
		if len(p.msg) == 0 && len(b) >= grpcHead {
			n, err := messageSize(b)
			if err != nil {
				return err
			}
			if len(b) >= n {
				if err := p.message(p.to, b[grpcHead:n]); err != nil {
					return err
				}
				b = b[n:]
				continue
			}
		}
		var err error
		if b, err = p.collect(b); err != nil {
			return err
		}
	}
	return nil
}

// collect adds to a message that does not lie in one frame, and returns what is left of b.
func (p *GRPC) collect(b []byte) ([]byte, error) {
	want := grpcHead
	if len(p.msg) >= grpcHead {
		var err error
		if want, err = messageSize(p.msg); err != nil {
			return nil, err
		}
	}
	n := min(want-len(p.msg), len(b))
	p.msg = append(p.msg, b[:n]...)
	b = b[n:]
	if len(p.msg) < grpcHead {
		return b, nil
	}
	size, err := messageSize(p.msg)
	if err != nil || len(p.msg) < size {
		return b, err
	}
	err = p.message(p.to, p.msg[grpcHead:])
	p.msg = p.msg[:0]
	return b, err
}

func messageSize(b []byte) (int, error) {
	n := int(binary.BigEndian.Uint32(b[1:]))
	switch {
	case b[0] != 0:
		return 0, errors.New("a message is compressed, which was not asked for")
	case n > maxEvent:
		return 0, errTooLarge
	}
	return grpcHead + n, nil
}
