package pebbleengine

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func diskUse(b *testing.B, dir string) (n int64) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "ballast" {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkQuietTopics is what many topics with one event each cost: bytes in memory and on disk per topic beyond the event's own, how long
// it takes to open their log, to find the newest event of each, and to read ten thousand of them.
func BenchmarkQuietTopics(b *testing.B) {
	const topics, each = 1_000_000, 1000
	for _, h := range []engine.History{engine.HistoryOS, engine.HistoryNone} {
		b.Run(string(h), func(b *testing.B) {
			for b.Loop() {
				dir := b.TempDir()
				e := open(b, nil, dir, engine.Config{History: h})
				l := logOf(b, e, "a")
				before := heap()
				stored := 0
				batch := make([]engine.Entry, 0, each)
				for i := range topics {
					en := entry(b, fmt.Sprintf("a.device.%07d.state", i), "", "on")
					stored += len(en.Body)
					if batch = append(batch, en); len(batch) == each {
						add(b, l, batch...)
						batch = batch[:0]
					}
				}
				after := heap()
				b.ReportMetric(float64(after-before)/topics, "memory-B/topic")
				if h == engine.HistoryNone {
					continue
				}
				began := time.Now()
				offsets, err := l.LastOffsets(b.Context(), pattern(b, "a.>"), topics, topics)
				if err != nil || len(offsets) != topics {
					b.Fatal(len(offsets), err)
				}
				b.ReportMetric(time.Since(began).Seconds(), "s-last-of-all")
				began = time.Now()
				read := 0
				for scattered := offsets; read < 10_000; {
					var some []uint64
					for i := read; i < 10_000; i++ {
						some = append(some, scattered[i*97])
					}
					page, err := l.ReadAt(b.Context(), some, 64<<10)
					if err != nil || len(page.Events) == 0 {
						b.Fatal(err)
					}
					read += len(page.Events)
				}
				b.ReportMetric(float64(time.Since(began).Microseconds())/10_000, "us-read-one")
				began = time.Now()
				for i := range 10_000 {
					if _, err := l.LastOffsets(b.Context(), pattern(b, fmt.Sprintf("a.device.%07d.state", i*97)), topics, 1); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(time.Since(began).Microseconds())/10_000, "us-last-of-one")
				if err := e.Close(); err != nil {
					b.Fatal(err)
				}
				began = time.Now()
				e = open(b, nil, dir, engine.Config{History: h})
				logOf(b, e, "a")
				b.ReportMetric(time.Since(began).Seconds(), "s-open")
				b.ReportMetric(float64(diskUse(b, dir)-int64(stored))/topics, "disk-B/topic")
			}
		})
	}
}
