// Package wire writes and reads the few protobuf encodings that are on the path of every event, by hand and once per event:
//
//   - the body: runnel.v1.Event without timestamp and offset, the topic first. It is made when an event is published.
//   - the event: body, then timestamp, then offset. Both are appended by whoever assigns them, which proto3 allows, since
//     fields may come in any order.
//   - the element: an event as one element of Delivery.events (tag, length, event). A delivery is a header and any number
//     of elements, so the same element bytes serve every subscriber.
//
// All functions are pure.
package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// Field numbers of runnel.v1.Event, Delivery and StreamResponse, as in proto/runnel/v1/stream.proto.
const (
	eventID          = 1
	eventPayload     = 2
	eventTimestamp   = 3
	eventTopic       = 4
	eventOffset      = 5
	eventKey         = 6
	eventContentType = 7
	eventHeaders     = 8
	eventPublisher   = 9

	deliverySubscription = 1
	deliveryEvents       = 2

	responseDeliveries = 1
)

// MaxTrailer is the most bytes AppendTimestamp and AppendOffset add together.
const MaxTrailer = 2 * (1 + 10)

var errBody = errors.New("wire: not an event body")

// AppendBody appends the body of the event that r publishes. id and publisher are taken from the arguments, not from r.
func AppendBody(b []byte, n topic.Name, id, publisher string, r *runnelv1.PublishRequest) []byte {
	b = appendString(b, eventTopic, n.String())
	b = appendString(b, eventID, id)
	if len(r.GetPayload()) > 0 {
		b = protowire.AppendTag(b, eventPayload, protowire.BytesType)
		b = protowire.AppendBytes(b, r.GetPayload())
	}
	b = appendString(b, eventKey, r.GetKey())
	b = appendString(b, eventContentType, r.GetContentType())
	for name, value := range r.GetHeaders() {
		size := protowire.SizeTag(1) + protowire.SizeBytes(len(name)) + protowire.SizeTag(2) + protowire.SizeBytes(len(value))
		b = protowire.AppendTag(b, eventHeaders, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendString(b, name)
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, value)
	}
	return appendString(b, eventPublisher, publisher)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// BodySize is an upper bound of the size of AppendBody's result.
func BodySize(n topic.Name, id, publisher string, r *runnelv1.PublishRequest) int {
	const field = 4 // tag and length of a short field
	size := len(n.String()) + len(id) + len(publisher) + len(r.GetPayload()) + len(r.GetKey()) + len(r.GetContentType()) + 7*field
	for name, value := range r.GetHeaders() {
		size += len(name) + len(value) + 4*field
	}
	return size
}

// AppendTimestamp completes a body with its timestamp, in Unix milliseconds.
func AppendTimestamp(b []byte, ms int64) []byte {
	b = protowire.AppendTag(b, eventTimestamp, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(ms))
}

// AppendOffset completes a body with its offset. 0 adds nothing.
func AppendOffset(b []byte, offset uint64) []byte {
	if offset == 0 {
		return b
	}
	b = protowire.AppendTag(b, eventOffset, protowire.VarintType)
	return protowire.AppendVarint(b, offset)
}

// BodyTopic returns the topic bytes of a body or event that begins with its topic, without copying.
func BodyTopic(b []byte) ([]byte, error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != eventTopic || typ != protowire.BytesType {
		return nil, errBody
	}
	t, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, errBody
	}
	return t, nil
}

// EventKey returns the key of a body or event, without copying; empty if it has none. The fields must be in AppendBody's order.
func EventKey(b []byte) []byte {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.BytesType || num == eventContentType || num == eventHeaders || num == eventPublisher {
			return nil // what lies behind the key has begun
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return nil
		}
		if num == eventKey {
			return v
		}
		b = b[n+m:]
	}
	return nil
}

// ElementEvent is the event in an element, without copying.
func ElementEvent(element []byte) []byte {
	_, _, n := protowire.ConsumeTag(element)
	if n < 0 {
		return nil
	}
	event, m := protowire.ConsumeBytes(element[n:])
	if m < 0 {
		return nil
	}
	return event
}

// ElementSize is the size of the element that holds an event of the given size.
func ElementSize(event int) int {
	return protowire.SizeTag(deliveryEvents) + protowire.SizeBytes(event)
}

// AppendElement appends event as one element of Delivery.events.
func AppendElement(b, event []byte) []byte {
	b = protowire.AppendTag(b, deliveryEvents, protowire.BytesType)
	return protowire.AppendBytes(b, event)
}

// MaxDeliveryHeader is the most bytes AppendDeliveryHeader adds.
const MaxDeliveryHeader = 16

// AppendDeliveryHeader begins an element of StreamResponse.deliveries for a subscription; elements of the given total size
// must follow.
func AppendDeliveryHeader(b []byte, subscription uint32, elements int) []byte {
	size := elements
	if subscription != 0 {
		size += protowire.SizeTag(deliverySubscription) + protowire.SizeVarint(uint64(subscription))
	}
	b = protowire.AppendTag(b, responseDeliveries, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	if subscription != 0 {
		b = protowire.AppendTag(b, deliverySubscription, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(subscription))
	}
	return b
}
