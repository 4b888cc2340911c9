package compress_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/encoding"

	"github.com/runnelhq/runnel/internal/compress"
)

func code(t testing.TB, c encoding.Compressor, b []byte) []byte {
	var out bytes.Buffer
	w, err := c.Compress(&out)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += 1000 { // in pieces, as gRPC hands it over
		if _, err := w.Write(b[i:min(i+1000, len(b))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decode(c encoding.Compressor, b []byte) ([]byte, error) {
	r, err := c.Decompress(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.(io.Closer).Close()
	return io.ReadAll(r)
}

func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, name := range compress.Names() {
		c := encoding.GetCompressor(name)
		var group sync.WaitGroup
		for i := range 50 {
			b := bytes.Repeat([]byte(fmt.Sprint("event ", i, " ")), rng.IntN(10_000))
			group.Go(func() {
				got, err := decode(c, code(t, c, b))
				if err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s: %d bytes came back as %d, %v", name, len(b), len(got), err)
				}
			})
		}
		group.Wait()
		if b := make([]byte, 10_000); len(code(t, c, b)) > 100 {
			t.Errorf("%s does not compress", name)
		}
	}
}

func TestGarbage(t *testing.T) {
	for _, name := range compress.Names() {
		c := encoding.GetCompressor(name)
		good := code(t, c, []byte(strings.Repeat("something ", 100)))
		for _, b := range [][]byte{nil, []byte("x"), []byte("not compressed at all"), good[:len(good)/2], append([]byte{0}, good...)} {
			if got, err := decode(c, b); err == nil && len(b) > 0 {
				t.Errorf("%s: %q decodes to %q", name, b, got)
			}
		}
		if got, err := decode(c, good); err != nil || len(got) != 1000 {
			t.Errorf("%s: after garbage: %d bytes, %v", name, len(got), err)
		}
	}
}

// A small message that says it is huge, or needs a huge window, costs little to refuse.
func TestBombs(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, name := range compress.Names() {
		c := encoding.GetCompressor(name)
		bomb := code(t, c, make([]byte, 64<<20))
		r, err := c.Decompress(bytes.NewReader(bomb))
		if err != nil {
			t.Fatal(err)
		}
		const limit = 1 << 20 // gRPC reads one byte more than its largest message
		if n, err := io.CopyN(io.Discard, r, limit+1); n != limit+1 {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		r.(io.Closer).Close()
	}
	wide, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	var big bytes.Buffer
	wide.Reset(&big)
	rng := rand.New(rand.NewPCG(3, 4))
	part := make([]byte, 1<<20)
	for i := range part {
		part[i] = byte(rng.Uint32())
	}
	for range 20 {
		wide.Write(part)
	}
	wide.Close()
	if _, err := decode(encoding.GetCompressor(compress.Zstd), big.Bytes()); err == nil {
		t.Error("a frame with a window of 64 MiB was accepted")
	}
	runtime.ReadMemStats(&after)
	if after.HeapInuse > before.HeapInuse+512<<20 {
		t.Errorf("the heap grew from %d to %d", before.HeapInuse, after.HeapInuse)
	}
}

// Market ticks and log lines, as events come in a frame: bytes that remain, and the time both ways.
func BenchmarkFrame(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 6))
	kinds := map[string]func(i int) string{
		"ticks": func(i int) string {
			return fmt.Sprintf(`{"symbol":"XBTUSDT","price":"%d.%d","size":"0.%04d","side":"%s","trade_id":"%d","timestamp":"2026-11-20T14:%02d:%02d.%03dZ"}`,
				64_000+rng.IntN(50), rng.IntN(10), rng.IntN(10_000), []string{"buy", "sell"}[rng.IntN(2)], 88_112_000+i, i/60%60, i%60, rng.IntN(1000))
		},
		"logs": func(i int) string {
			return fmt.Sprintf(`{"time":"2026-11-20T14:%02d:%02d.%06dZ","level":"%s","msg":"request served","method":"GET","path":"/api/v1/items/%d","status":%d,"ms":%d,"client":"10.0.%d.%d"}`,
				i/60%60, i%60, rng.IntN(1_000_000), []string{"INFO", "INFO", "WARN"}[rng.IntN(3)], rng.IntN(5000), []int{200, 200, 404}[rng.IntN(3)], rng.IntN(300), rng.IntN(4), rng.IntN(256))
		},
	}
	for kind, line := range kinds {
		for _, events := range []int{1, 20, 300} {
			var frame []byte
			for i := range events {
				frame = append(frame, line(i)...)
			}
			for _, name := range compress.Names() {
				c := encoding.GetCompressor(name)
				coded := code(b, c, frame)
				b.Run(fmt.Sprintf("%s/%d/%s", kind, events, name), func(b *testing.B) {
					b.SetBytes(int64(len(frame)))
					for b.Loop() {
						code(b, c, frame)
					}
					b.ReportMetric(float64(len(coded))/float64(len(frame)), "left")
				})
			}
		}
	}
}
