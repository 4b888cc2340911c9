package runnel

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

func sample(events int) *runnelv1.StreamResponse {
	m := &runnelv1.StreamResponse{Controls: []*runnelv1.Control{{RequestId: 7, Control: &runnelv1.Control_Bookmark{Bookmark: &runnelv1.Bookmark{Subscription: 3}}}}}
	d := &runnelv1.Delivery{Subscription: 3}
	for i := range events {
		e := &runnelv1.Event{
			EventId: fmt.Sprintf("id-%d", i), Payload: make([]byte, i%300), Timestamp: int64(i), Topic: fmt.Sprint("a.t", i%3), Offset: uint64(i + 1), Publisher: "p",
		}
		if i%5 == 0 {
			e.Key, e.ContentType, e.Headers = "k", "text/plain", map[string]string{"a": "1", "": "2"}
		}
		d.Events = append(d.Events, e)
	}
	m.Deliveries = []*runnelv1.Delivery{d, {}, {Subscription: 1, Events: []*runnelv1.Event{{}, {EventId: "x"}}}}
	return m
}

// differs says how the decoded response differs from what protobuf makes of the message.
func differs(r *response, m *runnelv1.StreamResponse) string {
	var want, got [][]Event
	for _, d := range m.GetDeliveries() {
		list := []Event{}
		for _, e := range d.GetEvents() {
			list = append(list, eventOf(e, ""))
		}
		want = append(want, list)
	}
	for i, d := range r.deliveries {
		got = append(got, d.events)
		if i < len(m.GetDeliveries()) && d.subscription != m.GetDeliveries()[i].GetSubscription() {
			return fmt.Sprintf("delivery %d is for %d", i, d.subscription)
		}
	}
	if len(r.controls) != len(m.GetControls()) {
		return fmt.Sprintf("%d controls, want %d", len(r.controls), len(m.GetControls()))
	}
	for i, c := range r.controls {
		if !proto.Equal(c, m.GetControls()[i]) {
			return fmt.Sprintf("control %d is %v", i, c)
		}
	}
	return cmp.Diff(want, got, cmpopts.EquateEmpty())
}

func TestDecode(t *testing.T) {
	var r response
	var kept []Event
	var want []string
	for _, n := range []int{0, 1, 2000, 3} {
		m := sample(n)
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}, &r); err != nil {
			t.Fatal(err)
		}
		if d := differs(&r, m); d != "" {
			t.Errorf("%d events: %s", n, d)
		}
		for _, e := range r.deliveries[0].events {
			kept, want = append(kept, e), append(want, fmt.Sprint(e))
		}
	}
	for i, e := range kept {
		if fmt.Sprint(e) != want[i] {
			t.Fatalf("an event has changed when the next message came: %v, it was %s", e, want[i])
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, n := range []int{0, 1, 20} {
		b, err := proto.Marshal(sample(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)*2/3])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r response
		err := r.decode(b)
		m := new(runnelv1.StreamResponse)
		if proto.Unmarshal(b, m) != nil {
			return // stricter: it checks that texts are UTF-8, and fields that are skipped here
		}
		if err != nil {
			t.Fatalf("protobuf reads it: %v", err)
		}
		if d := differs(&r, m); d != "" {
			t.Error(d)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	const events = 300
	m := &runnelv1.StreamResponse{Deliveries: []*runnelv1.Delivery{{Subscription: 1}}}
	for i := range events {
		m.Deliveries[0].Events = append(m.Deliveries[0].Events, &runnelv1.Event{
			EventId: fmt.Sprintf("01a1fba6-1681-7b58-9ac9-%012d", i), Payload: make([]byte, 136), Timestamp: 1795223328387, Topic: "quotes.MSFT", Offset: uint64(i + 1), Publisher: "feed-1",
		})
	}
	wire, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	data := mem.BufferSlice{mem.SliceBuffer(wire)}
	for name, v := range map[string]any{"hand": new(response), "protobuf": new(runnelv1.StreamResponse)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := newCodec().Unmarshal(data, v); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
		})
	}
}
