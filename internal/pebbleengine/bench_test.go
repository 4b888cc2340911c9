package pebbleengine

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/wire"
)

const benchWriters = 64

func BenchmarkAppend(b *testing.B) {
	for _, h := range histories {
		b.Run(string(h), func(b *testing.B) {
			l := logOf(b, open(b, nil, b.TempDir(), window(h)), "a")
			en := entry(b, "a.b", "", string(make([]byte, 136)))
			b.SetParallelism(benchWriters / 2)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					mine := en
					mine.Body = append(make([]byte, 0, len(en.Body)+wire.MaxTrailer), en.Body...)
					add(b, l, mine)
				}
			})
		})
	}
}

// BenchmarkBarePebble is the floor under BenchmarkAppend/disk: the same keys and values, one commit each.
func BenchmarkBarePebble(b *testing.B) {
	db, err := pebble.Open(b.TempDir(), &pebble.Options{MemTableSize: 64 << 20, Logger: pebbleLogger{&store{logger: discard}}})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	en := entry(b, "a.b", "", string(make([]byte, 136)))
	var next struct {
		sync.Mutex
		n uint64
	}
	b.SetParallelism(benchWriters / 2)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			next.Lock()
			next.n++
			offset := next.n
			next.Unlock()
			batch := db.NewBatch()
			v := make([]byte, valueHeader+len(en.Body))
			putValue(v, value{total: offset, body: en.Body})
			if err := errors.Join(batch.Set(offsetKey(kindLog, 1, offset), v, nil), batch.Set(indexKey(1, en.Topic, offset), nil, nil), batch.Commit(pebble.Sync)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	l := logOf(b, open(b, nil, b.TempDir(), window(engine.HistoryOS)), "a")
	const events = 100_000
	for range events / 1000 {
		var batch []engine.Entry
		for i := range 1000 {
			batch = append(batch, entry(b, fmt.Sprintf("a.%d", i%10), "", string(make([]byte, 136))))
		}
		add(b, l, batch...)
	}
	for name, want := range map[string]int{"a.>": events, "a.3": events / 10} {
		b.Run(name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				for after := uint64(0); ; {
					page, err := l.Read(b.Context(), engine.ReadRequest{Pattern: pattern(b, name), After: after})
					if err != nil {
						b.Fatal(err)
					}
					n += len(page.Events)
					if page.Scanned == after {
						break
					}
					after = page.Scanned
				}
			}
			if n != want*b.N {
				b.Fatalf("%d events, want %d", n, want*b.N)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
