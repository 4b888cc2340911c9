// Package compress registers gzip and zstd with gRPC, for clients and servers of this process. Coders are kept in pools, work in the
// calling goroutine, and are bounded: what a message may become when it is decompressed is limited by gRPC's largest message, and the
// window of a zstd frame by maxWindow. Nothing is compressed unless a caller asks for it (grpc.UseCompressor); a server answers a
// call in the coding of its request. All coders are safe for concurrent use.
package compress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/encoding"
)

// The codings, by their names in grpc-encoding.
const (
	Gzip = "gzip"
	Zstd = "zstd"
)

const (
	// window is how far back a zstd frame of ours refers: messages are rarely larger, and each coder holds as much.
	window = 128 << 10
	// maxWindow is the largest window of frames by others, and so the memory of one decoder.
	maxWindow = 8 << 20
)

// Names lists the codings.
func Names() []string { return []string{Gzip, Zstd} }

// Check says in one line what is wrong with a coding's name; empty means none, which is allowed.
func Check(name string) error {
	if name == "" || slices.Contains(Names(), name) {
		return nil
	}
	return fmt.Errorf("bad compression %q: it must be %s", name, strings.Join(Names(), " or "))
}

func init() {
	for _, c := range []encoding.Compressor{newGzip(), newZstd()} {
		// Whoever has registered one of that name before shares this process with us.
		if encoding.GetCompressor(c.Name()) == nil {
			encoding.RegisterCompressor(c)
		}
	}
}

// Memory is what a stream that compresses holds at most besides its frames, in bytes.
const Memory = 4 * window

// gzipCoder compresses fast rather than well: data that is compressed for each subscriber must be cheap.
type gzipCoder struct{ writers, readers sync.Pool }

func newGzip() *gzipCoder {
	c := &gzipCoder{}
	c.writers.New = func() any {
		w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
		if err != nil {
			panic(err) // the level is one that exists
		}
		return &gzipWriter{Writer: w, pool: &c.writers}
	}
	return c
}

// Name implements encoding.Compressor.
func (c *gzipCoder) Name() string { return Gzip }

type gzipWriter struct {
	*gzip.Writer
	pool *sync.Pool
}

// Compress implements encoding.Compressor.
func (c *gzipCoder) Compress(to io.Writer) (io.WriteCloser, error) {
	w := c.writers.Get().(*gzipWriter)
	w.Reset(to)
	return w, nil
}

// Close implements io.Closer.
func (w *gzipWriter) Close() error {
	err := w.Writer.Close()
	w.Reset(nil)
	w.pool.Put(w)
	return err
}

type gzipReader struct {
	*gzip.Reader
	pool *sync.Pool
}

// Decompress implements encoding.Compressor.
func (c *gzipCoder) Decompress(from io.Reader) (io.Reader, error) {
	r, ok := c.readers.Get().(*gzipReader)
	if ok {
		if err := r.Reset(from); err != nil {
			c.readers.Put(r)
			return nil, err
		}
		return r, nil
	}
	z, err := gzip.NewReader(from)
	if err != nil {
		return nil, err
	}
	return &gzipReader{z, &c.readers}, nil
}

// Close implements io.Closer; gRPC calls it once.
func (r *gzipReader) Close() error {
	r.pool.Put(r)
	return nil
}

// zstdCoder compresses whole messages.
type zstdCoder struct{ encoders, decoders, buffers sync.Pool }

func newZstd() *zstdCoder {
	c := &zstdCoder{}
	c.encoders.New = func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false)) // TCP has a checksum, and TLS a better one
		if err != nil {
			panic(err) // these options go together
		}
		return e
	}
	c.decoders.New = func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			panic(err)
		}
		return d
	}
	c.buffers.New = func() any { return new(zstdWriter) }
	return c
}

// Name implements encoding.Compressor.
func (c *zstdCoder) Name() string { return Zstd }

// zstdWriter gathers a message, which is then compressed at once: that costs less than streaming it.
type zstdWriter struct {
	c       *zstdCoder
	to      io.Writer
	in, out []byte
}

// Compress implements encoding.Compressor.
func (c *zstdCoder) Compress(to io.Writer) (io.WriteCloser, error) {
	w := c.buffers.Get().(*zstdWriter)
	w.c, w.to = c, to
	return w, nil
}

// Write implements io.Writer.
func (w *zstdWriter) Write(b []byte) (int, error) {
	w.in = append(w.in, b...)
	return len(b), nil
}

// keep is the largest buffer that is kept for the next message.
const keep = 256 << 10

// Close implements io.Closer.
func (w *zstdWriter) Close() error {
	e := w.c.encoders.Get().(*zstd.Encoder)
	w.out = e.EncodeAll(w.in, w.out[:0])
	w.c.encoders.Put(e)
	_, err := w.to.Write(w.out)
	if w.to = nil; cap(w.in) <= keep && cap(w.out) <= keep {
		w.in = w.in[:0]
		w.c.buffers.Put(w)
	}
	return err
}

type zstdReader struct {
	d    *zstd.Decoder
	pool *sync.Pool
}

// Decompress implements encoding.Compressor.
func (c *zstdCoder) Decompress(from io.Reader) (io.Reader, error) {
	d := c.decoders.Get().(*zstd.Decoder)
	if err := d.Reset(from); err != nil {
		c.decoders.Put(d)
		return nil, err
	}
	return &zstdReader{d, &c.decoders}, nil
}

// Read implements io.Reader.
func (r *zstdReader) Read(b []byte) (int, error) { return r.d.Read(b) }

// Close implements io.Closer; gRPC calls it once.
func (r *zstdReader) Close() error {
	err := r.d.Reset(nil)
	r.pool.Put(r.d)
	return err
}
