package cli

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/runnelhq/runnel"
)

// The functions here append protobuf's JSON by hand, which is several times faster than any general encoder: lowerCamelCase,
// 64-bit integers as strings, bytes as base64, zero values left out.

// object is a JSON object being written.
type object struct {
	b     []byte
	empty bool
}

func open(b []byte) object { return object{append(b, '{'), true} }

func (o *object) close() []byte { return append(o.b, '}') }

// comma begins a member whose name the caller writes.
func (o *object) comma() {
	if !o.empty {
		o.b = append(o.b, ',')
	}
	o.empty = false
}

// field begins a member; name is one of ours and needs no escapes.
func (o *object) field(name string) {
	o.comma()
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) text(name, value string) {
	if value != "" {
		o.field(name)
		o.b = appendString(o.b, value)
	}
}

func (o *object) number(name string, value uint64) {
	if value != 0 {
		o.field(name)
		o.b = append(strconv.AppendUint(append(o.b, '"'), value, 10), '"')
	}
}

// appendEvent appends an event, and text, where the payload is UTF-8, and epoch besides.
func appendEvent(b []byte, e *runnel.Event) []byte {
	o := open(b)
	o.text("eventId", e.ID)
	if len(e.Payload) > 0 {
		o.field("payload")
		o.b = append(base64.StdEncoding.AppendEncode(append(o.b, '"'), e.Payload), '"')
	}
	o.number("timestamp", uint64(e.Time.UnixMilli()))
	o.text("topic", e.Topic)
	o.number("offset", e.Position.Offset)
	o.text("key", e.Key)
	o.text("contentType", e.ContentType)
	if len(e.Headers) > 0 {
		o.field("headers")
		headers := open(o.b)
		for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
			headers.comma()
			headers.b = appendString(headers.b, name)
			headers.b = appendString(append(headers.b, ':'), e.Headers[name])
		}
		o.b = headers.close()
	}
	o.text("publisher", e.Publisher)
	if len(e.Payload) > 0 && utf8.Valid(e.Payload) {
		o.field("text")
		o.b = appendString(o.b, string(e.Payload))
	}
	o.text("epoch", e.Position.Epoch)
	return o.close()
}

// appendTopic appends a topic; its last event is as appendEvent has it.
func appendTopic(b []byte, t *runnel.Topic) []byte {
	o := open(b)
	o.text("topic", t.Name)
	o.text("epoch", t.Epoch)
	o.number("oldestOffset", t.Oldest)
	o.number("newestOffset", t.Newest)
	if t.Last != nil {
		o.field("last")
		o.b = appendEvent(o.b, t.Last)
	}
	if t.Durability != "UNSPECIFIED" {
		o.text("durability", "DURABILITY_"+t.Durability)
	}
	return o.close()
}

// appendString appends a JSON string. Besides what JSON asks for it escapes whatever could drive a terminal or be taken for the
// end of a line: C1 controls, and the separators of lines and paragraphs.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	done := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[done:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, `\n`...)
			case '\r':
				b = append(b, `\r`...)
			case '\t':
				b = append(b, `\t`...)
			default:
				b = appendEscape(b, rune(c))
			}
			i++
			done = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || r < 0xa0 || r == '\u2028' || r == '\u2029' {
			b = appendEscape(append(b, s[done:i]...), r)
			done = i + size
		}
		i += size
	}
	return append(append(b, s[done:]...), '"')
}

// appendEscape appends a character of the first plane.
func appendEscape(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
