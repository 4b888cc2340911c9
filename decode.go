package runnel

import (
	"errors"
	"time"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that everything but responses falls back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// response is a runnel.v1.StreamResponse, decoded by hand: with a message object, four strings and a payload for each event, memory
// management would cost more than everything else that the client does.
type response struct {
	controls   []*runnelv1.Control
	deliveries []delivery
	d          decoder
}

// delivery is what came for one subscription. The events are the receiver's; their epoch is not set.
type delivery struct {
	subscription uint32
	events       []Event
}

// codec decodes responses, and leaves everything else to gRPC's own.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*response)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	n := data.Len()
	if cap(r.d.buf) < n {
		r.d.buf = make([]byte, n)
	}
	b := r.d.buf[:n]
	data.CopyTo(b)
	return r.decode(b)
}

// Field numbers of the messages on the path of every event, as in proto/runnel/v1/stream.proto.
const (
	responseDeliveries   = 1
	responseControls     = 2
	deliverySubscription = 1
	deliveryEvents       = 2

	eventID          = 1
	eventPayload     = 2
	eventTimestamp   = 3
	eventTopic       = 4
	eventOffset      = 5
	eventKey         = 6
	eventContentType = 7
	eventHeaders     = 8
	eventPublisher   = 9
)

var errMalformed = errors.New("the server's message is malformed")

// decode replaces what r holds. It keeps nothing of b.
func (r *response) decode(b []byte) error {
	r.controls, r.deliveries = nil, r.deliveries[:0]
	for len(b) > 0 {
		num, v, _, n := field(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		switch num {
		case responseDeliveries:
			d, err := r.d.delivery(v)
			if err != nil {
				return err
			}
			r.deliveries = append(r.deliveries, d)
		case responseControls:
			c := new(runnelv1.Control)
			if err := proto.Unmarshal(v, c); err != nil {
				return errMalformed
			}
			r.controls = append(r.controls, c)
		}
	}
	return nil
}

// Fields that hold a number are told apart by this bit, so that one of the wrong type is none that is known.
const number = 1 << 30

// field cuts off the first field: its bytes if it has a length; its number, then with the bit number, if it is a varint. n is its size;
// below 0: it is malformed. Others than these two types are 0.
func field(b []byte) (num protowire.Number, v []byte, x uint64, n int) {
	// Nearly all tags have one byte, and nearly all lengths one or two.
	if len(b) > 2 && b[0] < 0x80 && b[0]&7 == byte(protowire.BytesType) && b[0] >= 1<<3 {
		size, at := int(b[1]), 2
		if size >= 0x80 {
			size, at = size&0x7f|int(b[2])<<7, 3
		}
		if (at == 2 || b[2] < 0x80) && len(b)-at >= size {
			return protowire.Number(b[0] >> 3), b[at : at+size : at+size], 0, at + size
		}
	}
	return anyField(b)
}

func anyField(b []byte) (num protowire.Number, v []byte, x uint64, n int) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, nil, 0, n
	}
	m := 0
	switch typ {
	case protowire.BytesType:
		v, m = protowire.ConsumeBytes(b[n:])
	case protowire.VarintType:
		x, m = protowire.ConsumeVarint(b[n:])
		num |= number
	default:
		m = protowire.ConsumeFieldValue(num, typ, b[n:])
		num = 0
	}
	if m < 0 {
		return 0, nil, 0, m
	}
	return num, v, x, n + m
}

// chunk is how much the payloads, or the ids, of several events share at most: whoever keeps one event keeps no more than that.
const chunk = 4 << 10

// decoder is what a stream keeps between messages.
type decoder struct {
	buf  []byte // the message
	last Event  // texts that repeat are not allocated again

	payloads []byte // room left in the chunk
	ids      []byte // of the events in owed
	owed     []span
}

// span is an event whose id is still in decoder.ids.
type span struct{ event, start, end int }

func (d *decoder) delivery(b []byte) (delivery, error) {
	var to delivery
	count := 0
	for rest := b; len(rest) > 0; {
		num, _, _, n := field(rest)
		if n < 0 {
			return to, errMalformed
		}
		rest = rest[n:]
		if num == deliveryEvents {
			count++
		}
	}
	to.events = make([]Event, count)
	for i := 0; len(b) > 0; {
		num, v, x, n := field(b)
		b = b[n:]
		switch num {
		case deliverySubscription | number:
			to.subscription = uint32(x)
		case deliveryEvents:
			if err := d.event(&to.events[i], i, v); err != nil {
				return to, err
			}
			i++
			if len(d.ids) > chunk {
				d.settle(to.events)
			}
		}
	}
	d.settle(to.events)
	return to, nil
}

// settle gives events their ids: one text is made for all of them.
func (d *decoder) settle(events []Event) {
	all := string(d.ids)
	for _, s := range d.owed {
		events[s.event].ID = all[s.start:s.end]
	}
	d.ids, d.owed = d.ids[:0], d.owed[:0]
}

func (d *decoder) event(e *Event, i int, b []byte) error {
	var ms int64
	for len(b) > 0 {
		num, v, x, n := field(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		switch num {
		case eventID:
			d.owed = append(d.owed, span{i, len(d.ids), len(d.ids) + len(v)})
			d.ids = append(d.ids, v...)
		case eventPayload:
			e.Payload = d.payload(v)
		case eventTimestamp | number:
			ms = int64(x)
		case eventTopic:
			e.Topic = same(&d.last.Topic, v)
		case eventOffset | number:
			e.Position.Offset = x
		case eventKey:
			e.Key = same(&d.last.Key, v)
		case eventContentType:
			e.ContentType = same(&d.last.ContentType, v)
		case eventPublisher:
			e.Publisher = same(&d.last.Publisher, v)
		case eventHeaders:
			if err := header(e, v); err != nil {
				return err
			}
		}
	}
	e.Time = time.UnixMilli(ms)
	return nil
}

// same is v as text: the last one again if it is equal.
func same(last *string, v []byte) string {
	if string(v) != *last {
		*last = string(v)
	}
	return *last
}

// payload copies v, if it is small into what is left of a chunk.
func (d *decoder) payload(v []byte) []byte {
	n := len(v)
	if n > chunk/4 {
		return append([]byte(nil), v...)
	}
	if n > len(d.payloads) {
		d.payloads = make([]byte, chunk)
	}
	p := d.payloads[:n:n]
	d.payloads = d.payloads[n:]
	copy(p, v)
	return p
}

// header adds an entry of a map<string, string>.
func header(e *Event, b []byte) error {
	var name, value string
	for len(b) > 0 {
		num, v, _, n := field(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		switch num {
		case 1:
			name = string(v)
		case 2:
			value = string(v)
		}
	}
	if e.Headers == nil {
		e.Headers = map[string]string{}
	}
	e.Headers[name] = value
	return nil
}
