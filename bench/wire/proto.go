package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

var errMessage = errors.New("a message is not encoded as expected")

// eventPayload is the number of the payload in runnel.v1.Event.
const eventPayload = 2

// StreamResponse reads an encoded runnel.v1.StreamResponse.
func StreamResponse(to Events, b []byte) error {
	const deliveries, controls, events = 1, 2, 2
	for len(b) > 0 {
		num, v, rest, err := field(b)
		if err != nil {
			return err
		}
		b = rest
		switch num {
		case deliveries:
			for len(v) > 0 {
				num, event, rest, ok := short(v)
				if !ok {
					var err error
					if num, event, rest, err = field(v); err != nil {
						return err
					}
				}
				if v = rest; num == events {
					if err := Single(to, event); err != nil {
						return err
					}
				}
			}
		case controls:
			c := new(runnelv1.Control)
			if err := proto.Unmarshal(v, c); err != nil {
				return errMessage
			}
			if c.GetSubscribed() != nil {
				to.Ready()
			}
			if n := c.GetNotice().GetCount(); n > 0 {
				to.Noticed(int(n))
			}
		}
	}
	return nil
}

// Single reads an encoded runnel.v1.Event.
func Single(to Events, b []byte) error {
	for len(b) > 0 {
		num, v, rest, ok := short(b)
		if !ok {
			var err error
			if num, v, rest, err = field(b); err != nil {
				return err
			}
		}
		if num == eventPayload {
			to.Event(v)
			return nil
		}
		b = rest
	}
	return errMessage
}

// short is field for what nearly all fields are: a number below 16 and a length below 16,384. It is inlined, which halves the time
// per event. ok is false if the field is not like that, or not whole.
func short(b []byte) (num protowire.Number, v, rest []byte, ok bool) {
	const bytesType, more = 2, 0x80
	if len(b) < 3 || b[0]&(more|7) != bytesType || b[0]>>3 == 0 {
		return 0, nil, nil, false
	}
	n, at := int(b[1]), 2
	if n >= more {
		if b[2] >= more || b[2] == 0 {
			return 0, nil, nil, false
		}
		n, at = n&^more|int(b[2])<<7, 3
	}
	if len(b)-at < n {
		return 0, nil, nil, false
	}
	return protowire.Number(b[0] >> 3), b[at : at+n], b[at+n:], true
}

// field cuts the first field off; v is its content if it has a length.
func field(b []byte) (num protowire.Number, v, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, nil, nil, errMessage
	}
	if typ == protowire.BytesType {
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return 0, nil, nil, errMessage
		}
		return num, v, b[n+m:], nil
	}
	m := protowire.ConsumeFieldValue(num, typ, b[n:])
	if m < 0 {
		return 0, nil, nil, errMessage
	}
	return num, nil, b[n+m:], nil
}
