package natsengine

import (
	"fmt"
	"sync/atomic"
	"testing"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// benchEntry is an event of 200 bytes on one of 100 topics.
func benchEntry(n uint64) engine.Entry {
	name := topic.Stored(fmt.Sprintf("n.%d", n%100))
	id := fmt.Sprint(n)
	return engine.Entry{Topic: name, ID: id, Body: wire.AppendBody(nil, name, id, "p", &runnelv1.PublishRequest{Payload: make([]byte, 200)})}
}

func each(b *testing.B, f func(b *testing.B, l *log)) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			c := natstest.New(b, servers)
			l := logOf(b, open(b, Options{URLs: c.URLs(), Replicas: servers}), "n")
			b.ResetTimer()
			f(b, l)
		})
	}
}

// 256 publishers, each waiting for its own event.
func BenchmarkAppend(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		var n atomic.Uint64
		b.SetParallelism(128)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := l.Append(b.Context(), []engine.Entry{benchEntry(n.Add(1))}, engine.AppendEach); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// One publisher, ordered appends of 500 events.
func BenchmarkAppendOrdered(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		for done := 0; done < b.N; {
			entries := make([]engine.Entry, min(500, b.N-done))
			for i := range entries {
				entries[i] = benchEntry(uint64(done + i))
			}
			if _, err := l.Append(b.Context(), entries, engine.AppendOrdered); err != nil {
				b.Fatal(err)
			}
			done += len(entries)
		}
	})
}

// Reading what is not in memory.
func BenchmarkRead(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		const events = 20_000
		for done := 0; done < events; done += 500 {
			entries := make([]engine.Entry, 500)
			for i := range entries {
				entries[i] = benchEntry(uint64(done + i))
			}
			put(b, l, entries...)
		}
		l.forget()
		b.ResetTimer()
		for n, after := 0, uint64(0); n < b.N; {
			p, err := l.Read(b.Context(), engine.ReadRequest{After: after % events})
			if err != nil || len(p.Events) == 0 {
				b.Fatal(err)
			}
			n, after = n+len(p.Events), p.Scanned
		}
	})
}
