package cli

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

var jsonEvents = map[string]*runnelv1.Event{
	"zero": {},
	"full": {
		EventId: "id-1", Payload: []byte("187.20"), Timestamp: 1795223155112, Topic: "quotes.AAPL", Offset: 1<<64 - 1, Key: "AAPL",
		ContentType: "text/plain", Headers: map[string]string{"b": "2", "a": "1", "": "empty"}, Publisher: "desk-7",
	},
	"binary":    {Topic: "a.b", Offset: 1, Payload: []byte{0xff, 0x00, 0xfe}},
	"escapes":   {Topic: "a.b", Offset: 2, Payload: []byte("\x00\x1b[31m\"\\\b\f\n\r\t\x7f\u009b<&>\u2028\u2029\ufffd 日本 😀 \U0010ffff")},
	"long":      {Topic: "a.b", Offset: 3, Payload: bytes.Repeat([]byte("x"), 100_000)},
	"headers":   {Headers: map[string]string{"q\"uote": "new\nline", "ümlaut": "\u0085"}},
	"max times": {Timestamp: 1<<63 - 1},
}

// members parses one line of JSON.
func members(t *testing.T, line []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return m
}

func protoMembers(t *testing.T, m proto.Message) map[string]any {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return members(t, b)
}

// sdkEvent is what the SDK makes of an event.
func sdkEvent(e *runnelv1.Event, epoch string) *runnel.Event {
	return &runnel.Event{
		Topic: e.GetTopic(), ID: e.GetEventId(), Payload: e.GetPayload(), Position: runnel.Position{Epoch: epoch, Offset: e.GetOffset()},
		Time: time.UnixMilli(e.GetTimestamp()), Key: e.GetKey(), ContentType: e.GetContentType(), Headers: e.GetHeaders(), Publisher: e.GetPublisher(),
	}
}

// wantEvent is protobuf's own JSON, and text and epoch.
func wantEvent(t *testing.T, e *runnelv1.Event, epoch string) map[string]any {
	t.Helper()
	want := protoMembers(t, e)
	if len(e.GetPayload()) > 0 && utf8.Valid(e.GetPayload()) {
		want["text"] = string(e.GetPayload())
	}
	if epoch != "" {
		want["epoch"] = epoch
	}
	return want
}

func TestEventJSON(t *testing.T) {
	for name, e := range jsonEvents {
		for _, epoch := range []string{"", "0123456789abcdef"} {
			line := appendEvent(nil, sdkEvent(e, epoch))
			if want := wantEvent(t, e, epoch); !reflect.DeepEqual(members(t, line), want) {
				t.Errorf("%s: %s\nwant %v", name, line, want)
			}
			checkPlain(t, line)
		}
	}
}

func TestTopicJSON(t *testing.T) {
	last := jsonEvents["full"]
	for _, d := range []*runnelv1.Topic{
		{},
		{Topic: "a.b", Epoch: "0123456789abcdef", Durability: runnelv1.Durability_DURABILITY_NONE},
		{Topic: "a.b", Epoch: "0123456789abcdef", OldestOffset: 1, NewestOffset: last.GetOffset(), Last: last, Durability: runnelv1.Durability_DURABILITY_DISK},
	} {
		topic := &runnel.Topic{
			Name: d.GetTopic(), Epoch: d.GetEpoch(), Oldest: d.GetOldestOffset(), Newest: d.GetNewestOffset(),
			Durability: d.GetDurability().String()[len("DURABILITY_"):],
		}
		want := protoMembers(t, d)
		if d.GetLast() != nil {
			topic.Last = sdkEvent(d.GetLast(), d.GetEpoch())
			want["last"] = wantEvent(t, d.GetLast(), d.GetEpoch())
		}
		if line := appendTopic(nil, topic); !reflect.DeepEqual(members(t, line), want) {
			t.Errorf("%s\nwant %v", line, want)
		}
	}
}

// checkPlain finds bytes that would end a line or drive a terminal.
func checkPlain(t *testing.T, line []byte) {
	t.Helper()
	for _, r := range string(line) {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			t.Errorf("%U in %q", r, line)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, e := range jsonEvents {
		f.Add(string(e.GetPayload()))
	}
	f.Fuzz(func(t *testing.T, s string) {
		line := appendString(nil, s)
		checkPlain(t, line)
		var got string
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if want := string([]rune(s)); got != want { // what is not UTF-8 becomes U+FFFD
			t.Errorf("%q became %q", s, got)
		}
	})
}

func BenchmarkAppendEvent(b *testing.B) {
	e := sdkEvent(&runnelv1.Event{
		EventId: "01a1fba3-71a6-741b-a26b-8d17475cb0b9", Payload: bytes.Repeat([]byte("ticks "), 20), Timestamp: 1795223155112,
		Topic: "quotes.AAPL", Offset: 123456, Publisher: "anonymous-5VMRZKJY6G",
	}, "0123456789abcdef")
	var line []byte
	for b.Loop() {
		line = appendEvent(line[:0], e)
	}
	b.SetBytes(int64(len(line)))
}
