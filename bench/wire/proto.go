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
				num, event, rest, err := field(v)
				if err != nil {
					return err
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
		num, v, rest, err := field(b)
		if err != nil {
			return err
		}
		if num == eventPayload {
			to.Event(v)
			return nil
		}
		b = rest
	}
	return errMessage
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
