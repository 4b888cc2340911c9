package wire

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// seen is what a parser has told.
type seen struct {
	ready, noticed int
	events         []string
}

func (s *seen) Ready()         { s.ready++ }
func (s *seen) Event(b []byte) { s.events = append(s.events, string(b)) }
func (s *seen) Noticed(n int)  { s.noticed += n }

func response(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func delivery(payloads ...string) *runnelv1.StreamResponse {
	d := &runnelv1.Delivery{Subscription: 1}
	for i, p := range payloads {
		d.Events = append(d.Events, &runnelv1.Event{Topic: "a.b", EventId: "id", Timestamp: 1, Offset: uint64(i + 1), Payload: []byte(p)})
	}
	return &runnelv1.StreamResponse{Deliveries: []*runnelv1.Delivery{d}}
}

// grpcStream is what a server of Runnel may send: settings, headers, controls, events over several frames, a ping.
func grpcStream(t testing.TB) []byte {
	t.Helper()
	b := appendFrame(nil, frameSettings, 0, 0, nil)
	b = appendFrame(b, frameHeaders, flagEndHeaders, 1, []byte{0x88})
	b = appendFrame(b, frameData, 0, 1, response(t, &runnelv1.StreamResponse{Controls: []*runnelv1.Control{
		{Control: &runnelv1.Control_Welcome{Welcome: &runnelv1.Welcome{SessionId: "s"}}},
		{Control: &runnelv1.Control_Subscribed{Subscribed: &runnelv1.Subscribed{Subscription: 1}}}}}))
	two := slices.Concat(response(t, delivery("one", "two")), response(t, delivery("three")))
	b = appendFrame(b, frameData, 0, 1, two[:3])
	b = appendFrame(b, frameData, 0, 1, two[3:11])
	b = appendFrame(b, frameData, 0, 1, nil)
	b = appendFrame(b, frameData, 0, 1, two[11:])
	b = appendFrame(b, framePing, 0, 0, []byte("12345678"))
	b = appendFrame(b, frameWindowUpdate, 0, 0, []byte{0, 0, 1, 0})
	return appendFrame(b, frameData, 0, 1, response(t, &runnelv1.StreamResponse{Controls: []*runnelv1.Control{
		{Control: &runnelv1.Control_Notice{Notice: &runnelv1.Notice{Kind: runnelv1.NoticeKind_NOTICE_KIND_DROPPED, Count: 7}}}}}))
}

func textbookStream(t testing.TB) []byte {
	t.Helper()
	b := appendFrame(nil, frameSettings, 0, 0, nil)
	b = appendFrame(b, frameHeaders, flagEndHeaders, 1, []byte{0x88})
	for _, p := range []string{"one", "two", "three"} {
		b = appendFrame(b, frameData, 0, 1, response(t, &runnelv1.Event{EventId: "x", Payload: []byte(p)}))
	}
	return b
}

func pollResponse(last uint64, payloads ...string) string {
	body := binary.LittleEndian.AppendUint64(nil, last)
	for _, p := range payloads {
		body = AppendFramed(body, []byte(p))
	}
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nDate: now\r\n\r\n%s", len(body), body)
}

// protocol is a parser and a stream of three events that it understands.
type protocol struct {
	name           string
	parser         func(Events) Parser
	stream         []byte
	ready, noticed int
	reply          string // all that is written back
}

func protocols(t testing.TB) []protocol {
	t.Helper()
	const info = "INFO {\"max_payload\":1}\r\n"
	return []protocol{
		{"framed", func(e Events) Parser { return NewFramed(e) },
			AppendFramed(AppendFramed(AppendFramed(make([]byte, 4), []byte("one")), []byte("two")), []byte("three")), 1, 0, ""},
		{"runnel", func(e Events) Parser { return NewGRPC(e, false, StreamResponse) }, grpcStream(t), 1, 7,
			"\x00\x00\x00\x04\x01\x00\x00\x00\x00" + "\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678"},
		{"textbook", func(e Events) Parser { return NewGRPC(e, true, Single) }, textbookStream(t), 1, 0, "\x00\x00\x00\x04\x01\x00\x00\x00\x00"},
		{"nats", func(e Events) Parser { return NewNATS(e) },
			[]byte(info + "PONG\r\nMSG a.b 1 3\r\none\r\nPING\r\nMSG a.b 1 reply.to 3\r\ntwo\r\nMSG a.b 1 5\r\nthree\r\n"), 1, 0, "PONG\r\n"},
		{"jetstream", func(e Events) Parser { return NewJetStream(e) },
			[]byte(info + "MSG i.1 2 13\r\n{\"name\":\"abc\"\r\nMSG d.1 1 $JS.ACK.x 3\r\none\r\nMSG d.1 1 3\r\ntwo\r\nMSG d.1 1 5\r\nthree\r\n"), 1, 0, ""},
		{"poll", func(e Events) Parser { return NewPoll(e, "t") }, []byte(pollResponse(1, "one") + pollResponse(3, "two", "three")), 0, 0,
			string(PollRequest(PollRequest(nil, "t", 1), "t", 3))},
	}
}

// However a stream is cut into pieces, the events are the same.
func TestParsersInPieces(t *testing.T) {
	for _, p := range protocols(t) {
		for size := 1; size <= len(p.stream); size++ {
			var got seen
			reply, parser := "", p.parser(&got)
			for piece := range slices.Chunk(p.stream, size) {
				r, err := parser.Feed(slices.Clone(piece))
				if err != nil {
					t.Fatalf("%s in pieces of %d: %v", p.name, size, err)
				}
				reply += string(r)
			}
			if strings.Join(got.events, " ") != "one two three" || got.ready != p.ready || got.noticed != p.noticed || reply != p.reply {
				t.Fatalf("%s in pieces of %d: %+v, reply %q", p.name, size, got, reply)
			}
		}
	}
}

// What has been taken is given back to both windows, or a server would stop.
func TestGRPCReturnsWindow(t *testing.T) {
	var got seen
	p := NewGRPC(&got, true, Single)
	frame := appendFrame(nil, frameData, 0, 1, response(t, &runnelv1.Event{Payload: make([]byte, 10_000)}))
	taken, given := 0, 0
	for range 1000 {
		reply, err := p.Feed(frame)
		if err != nil {
			t.Fatal(err)
		}
		taken += len(frame) - frameHead
		for ; len(reply) > 0; reply = reply[frameHead+4:] {
			if reply[3] != frameWindowUpdate {
				t.Fatalf("reply %x", reply)
			}
			given += int(binary.BigEndian.Uint32(reply[frameHead:]))
		}
		if open := 2*taken - given; open > 2*window {
			t.Fatalf("%d bytes not given back", open)
		}
	}
	if given == 0 || given%2 != 0 {
		t.Errorf("%d bytes given back", given)
	}
}

func TestParsersRefuse(t *testing.T) {
	grpcParser := func(e Events) Parser { return NewGRPC(e, false, StreamResponse) }
	for _, c := range []struct {
		name   string
		parser func(Events) Parser
		in     string
		want   string
	}{
		{"compressed", grpcParser, string(appendFrame(nil, frameData, 0, 1, []byte{1, 0, 0, 0, 0})), "compressed"},
		{"huge message", grpcParser, string(appendFrame(nil, frameData, 0, 1, []byte{0, 255, 0, 0, 0})), "larger than"},
		{"not a response", grpcParser, string(appendFrame(nil, frameData, 0, 1, []byte{0, 0, 0, 0, 2, 0x0a, 9})), "not encoded"},
		{"reset", grpcParser, string(appendFrame(nil, frameReset, 0, 1, []byte{0, 0, 0, 8})), "cut the stream"},
		{"status", grpcParser, string(appendFrame(nil, frameHeaders, flagEndStream|flagEndHeaders, 1, []byte{0x88})), "ended the stream"},
		{"padded", grpcParser, string(appendFrame(nil, frameData, flagPadded, 1, []byte{0})), "padded"},
		{"huge event", func(e Events) Parser { return NewFramed(e) }, "\xff\xff\xff\x7f", "larger than"},
		{"NATS error", func(e Events) Parser { return NewNATS(e) }, "-ERR 'Authorization Violation'\r\n", "Authorization"},
		{"NATS length", func(e Events) Parser { return NewNATS(e) }, "MSG a 1 -1\r\n", "bad line"},
		{"JetStream error", func(e Events) Parser { return NewJetStream(e) }, "MSG i.1 2 11\r\n{\"error\":{}\r\n", "the server says"},
		{"poll status", func(e Events) Parser { return NewPoll(e, "t") }, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "500"},
		{"poll without length", func(e Events) Parser { return NewPoll(e, "t") }, "HTTP/1.1 200 OK\r\n\r\n", "not a response"},
		{"poll with a short body", func(e Events) Parser { return NewPoll(e, "t") }, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", "not a response"},
	} {
		if _, err := c.parser(&seen{}).Feed([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// Nothing that a server sends makes a parser panic, and how it comes does not matter.
func FuzzParsers(f *testing.F) {
	all := protocols(f)
	for i, p := range all {
		f.Add(uint8(i), uint8(7), p.stream)
	}
	f.Fuzz(func(t *testing.T, which, size uint8, stream []byte) {
		p := all[int(which)%len(all)]
		whole, pieces := &seen{}, &seen{}
		_, err1 := p.parser(whole).Feed(slices.Clone(stream))
		parser, err2 := p.parser(pieces), error(nil)
		for piece := range slices.Chunk(stream, int(size)+1) {
			if _, err2 = parser.Feed(slices.Clone(piece)); err2 != nil {
				break
			}
		}
		if (err1 == nil) != (err2 == nil) || !slices.Equal(whole.events, pieces.events) {
			t.Errorf("%s: %q, %v as a whole; %q, %v in pieces", p.name, whole.events, err1, pieces.events, err2)
		}
	})
}
