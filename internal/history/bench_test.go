package history

import (
	"runtime"
	"strconv"
	"testing"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// BenchmarkCheck records and judges a history of b.N events, each seen by two subscribers, and reports what an event costs:
// go test -run - -bench Check -benchtime 1000000x ./internal/history
func BenchmarkCheck(b *testing.B) {
	p, err := topic.ParsePattern("n.>")
	if err != nil {
		b.Fatal(err)
	}
	before := heap()
	rec := New()
	rec.Namespace("n", Rules{Durability: runnelv1.Durability_DURABILITY_DISK})
	rec.Opened("n", Opening{Epoch: "e"})
	subs := []*Subscriber{rec.Subscriber("a", p), rec.Subscriber("b", p)}
	for _, s := range subs {
		s.Subscribed(Position{Epoch: "e"})
	}
	payload := make([]byte, 136)
	b.ResetTimer()
	for i := range b.N {
		id, offset := strconv.Itoa(i), uint64(i+1)
		rec.Publish(Publish{Topic: "n.a", ID: id, Payload: payload, Outcome: Acked, Epoch: "e", Offset: offset, Timestamp: 1})
		for _, s := range subs {
			s.Event(offset, 1, "n.a", id, payload)
		}
	}
	b.ReportMetric(float64(heap()-before)/float64(b.N), "B/event-recorded")
	c := newCheck(rec, rec.namespaces["n"])
	if found := c.run(); len(found) > 0 {
		b.Fatal(found)
	}
	b.ReportMetric(float64(heap()-before)/float64(b.N), "B/event-checked")
	runtime.KeepAlive(c)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
