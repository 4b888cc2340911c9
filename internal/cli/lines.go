package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxInput bounds what is read into memory as one payload. What a server takes is less; it says so itself.
const maxInput = 64 << 20

// lineReader splits a stream into lines. It belongs to one goroutine.
type lineReader struct {
	r     io.Reader
	quiet time.Duration // after this long without a full line next returns errQuiet; 0: never

	buf     []byte
	start   int // of what is not yet returned
	scanned int // up to here there is no end of line
	ended   error
}

func newLineReader(r io.Reader, quiet time.Duration) *lineReader {
	return &lineReader{r: r, quiet: quiet, buf: make([]byte, 0, 256<<10)}
}

// next returns the next line without its "\n" and otherwise as it is, valid until the call after. An unfinished last line counts. It ends
// with io.EOF, or with ctx's error as soon as a line would have to be waited for.
func (l *lineReader) next(ctx context.Context) ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.scanned:], '\n'); i >= 0 {
			line := l.buf[l.start : l.scanned+i]
			l.scanned += i + 1
			l.start = l.scanned
			return line, nil
		}
		l.scanned = len(l.buf)
		if l.ended != nil {
			rest := l.buf[l.start:]
			l.start = len(l.buf)
			if errors.Is(l.ended, io.EOF) && len(rest) > 0 {
				return rest, nil
			}
			return nil, l.ended
		}
		if err := l.fill(ctx); err != nil {
			return nil, err
		}
	}
}

// fill reads once, after what is not yet returned.
func (l *lineReader) fill(ctx context.Context) error {
	if err := await(ctx, l.r, l.quiet); err != nil {
		return err
	}
	if l.start > 0 {
		l.buf = l.buf[:copy(l.buf, l.buf[l.start:])]
		l.scanned -= l.start
		l.start = 0
	}
	if len(l.buf) == cap(l.buf) {
		if len(l.buf) >= maxInput {
			return fmt.Errorf("a line is longer than %d MiB; is this text?", maxInput>>20)
		}
		l.buf = append(make([]byte, 0, 2*cap(l.buf)), l.buf...)
	}
	n, err := l.r.Read(l.buf[len(l.buf):cap(l.buf)])
	l.buf = l.buf[:len(l.buf)+n]
	l.ended = err
	return nil
}
