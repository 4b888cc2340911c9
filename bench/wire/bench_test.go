package wire

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

type counter struct{ n int }

func (c *counter) Ready()       {}
func (c *counter) Event([]byte) { c.n++ }
func (c *counter) Noticed(int)  {}

// The receiver must cost less than any server: here is what it costs per event, without the system calls.
func BenchmarkFeed(b *testing.B) {
	const events = 200
	payload := strings.Repeat("x", 136)
	many := func(one string) []byte { return []byte(strings.Repeat(one, events)) }
	all := &runnelv1.Delivery{Subscription: 1}
	for range events {
		all.Events = append(all.Events, &runnelv1.Event{Topic: "bench.fanout", EventId: "0197f3c2-7e4a-7d2b-9d3a-0123456789ab", Payload: []byte(payload), Timestamp: 1 << 40})
	}
	one, err := proto.Marshal(&runnelv1.Event{Topic: "bench.fanout", Payload: []byte(payload)})
	if err != nil {
		b.Fatal(err)
	}
	frames := []byte(nil)
	whole := response(b, &runnelv1.StreamResponse{Deliveries: []*runnelv1.Delivery{all}})
	for piece := range slices.Chunk(whole, 16<<10) {
		frames = appendFrame(frames, frameData, 0, 1, piece)
	}
	single := slices.Concat([]byte{0, 0, 0, 0, byte(len(one))}, one)
	for _, c := range []struct {
		name   string
		parser func(Events) Parser
		in     []byte
	}{
		{"framed", func(e Events) Parser { return NewFramed(e) }, many(string(AppendFramed(nil, []byte(payload))))},
		{"runnel", func(e Events) Parser { return NewGRPC(e, false, StreamResponse) }, frames},
		{"textbook", func(e Events) Parser { return NewGRPC(e, false, Single) }, many(string(appendFrame(nil, frameData, 0, 1, single)))},
		{"nats", func(e Events) Parser { return NewNATS(e) }, many("MSG bench.fanout 1 136\r\n" + payload + "\r\n")},
	} {
		b.Run(c.name, func(b *testing.B) {
			to := new(counter)
			p := c.parser(to)
			for b.Loop() {
				if _, err := p.Feed(c.in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(to.n), "ns/event")
		})
	}
}
