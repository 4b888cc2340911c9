package load

import (
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// StampSize is the least payload: it begins with the time when the event was due, in nanoseconds of this process.
const StampSize = 8

var began = time.Now()

// Stamp writes a time into a payload.
func Stamp(payload []byte, t time.Time) {
	binary.LittleEndian.PutUint64(payload, uint64(t.Sub(began)))
}

// Since the stamp in a payload, so much time has passed at t.
func sinceStamp(payload []byte, t time.Duration) time.Duration {
	if len(payload) < StampSize {
		return 0
	}
	return t - time.Duration(binary.LittleEndian.Uint64(payload))
}

// raw is a message as bytes, encoded elsewhere or not decoded.
type raw struct{ b []byte }

// rawCodec passes raw messages through, so that the client costs little of what it measures.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *raw:
		return mem.BufferSlice{mem.SliceBuffer(v.b)}, nil
	case proto.Message:
		b, err := proto.Marshal(v)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, errors.New("not a message")
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *raw:
		n := data.Len()
		if cap(v.b) < n {
			v.b = make([]byte, n)
		}
		v.b = v.b[:n]
		data.CopyTo(v.b)
		return nil
	case proto.Message:
		return proto.Unmarshal(data.Materialize(), v)
	}
	return errors.New("not a message")
}

var errResponse = errors.New("the answer is not a runnel.v1.StreamResponse")

// tally is what a response held.
type tally struct {
	events   int
	noticed  int64 // events that notices account for
	controls []*runnelv1.Control
}

// scan walks an encoded StreamResponse and calls payload with each event's.
func (t *tally) scan(b []byte, payload func([]byte)) error {
	const deliveries, controls, events, eventPayload = 1, 2, 2, 2
	t.events, t.noticed, t.controls = 0, 0, t.controls[:0]
	return fields(b, func(num protowire.Number, v []byte) error {
		switch num {
		case deliveries:
			return fields(v, func(num protowire.Number, v []byte) error {
				if num != events {
					return nil
				}
				t.events++
				return fields(v, func(num protowire.Number, v []byte) error {
					if num == eventPayload {
						payload(v)
						return errStop
					}
					return nil
				})
			})
		case controls:
			c := new(runnelv1.Control)
			if err := proto.Unmarshal(v, c); err != nil {
				return errResponse
			}
			t.noticed += int64(c.GetNotice().GetCount())
			t.controls = append(t.controls, c)
		}
		return nil
	})
}

// errStop ends fields early.
var errStop = errors.New("stop")

// fields calls f with the length-delimited fields of a message.
func fields(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errResponse
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errResponse
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errResponse
		}
		b = b[n:]
		switch err := f(num, v); err {
		case nil:
		case errStop:
			return nil
		default:
			return err
		}
	}
	return nil
}

// appendPublish appends an encoded PublishRequest.
func appendPublish(b []byte, topic string, payload []byte) []byte {
	const requestTopic, requestPayload = 1, 2
	b = protowire.AppendTag(b, requestTopic, protowire.BytesType)
	b = protowire.AppendString(b, topic)
	b = protowire.AppendTag(b, requestPayload, protowire.BytesType)
	return protowire.AppendBytes(b, payload)
}
