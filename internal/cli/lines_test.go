package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// readLines lists all lines and how they end.
func readLines(ctx context.Context, r io.Reader) (lines []string, err error) {
	l := newLineReader(r, 0)
	for {
		line, err := l.next(ctx)
		if err != nil {
			return lines, err
		}
		lines = append(lines, string(line))
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	in := "one\n\ntwo\r\n" + long + "\nlast"
	want := []string{"one", "", "two\r", long, "last"}
	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(in), "data with EOF": iotest.DataErrReader(strings.NewReader(in)), "in pieces": iotest.HalfReader(strings.NewReader(in)),
	} {
		got, err := readLines(t.Context(), r)
		if !errors.Is(err, io.EOF) || strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: %d lines, %v", name, len(got), err)
		}
	}
	failure := errors.New("disk on fire")
	if got, err := readLines(t.Context(), io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(failure))); !errors.Is(err, failure) || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLineTooLong(t *testing.T) {
	if _, err := readLines(t.Context(), zeros{}); err == nil || !strings.Contains(err.Error(), "longer than 64 MiB") {
		t.Error(err)
	}
}

// zeros never ends and has no lines.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// A reader that waits for a pipe says when nothing comes, takes what comes then, and can be interrupted.
func TestLinesFromPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l := newLineReader(r, time.Millisecond)
	if _, err := l.next(t.Context()); !errors.Is(err, errQuiet) {
		t.Fatal(err)
	}
	if _, err := w.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.next(t.Context()); !errors.Is(err, errQuiet) {
		t.Fatal(err)
	}
	if _, err := w.WriteString(" and half\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := l.next(t.Context()); err != nil || string(line) != "half and half" {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := readLines(ctx, r); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), 3)
	f.Add([]byte("\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, piece int) {
		l := newLineReader(iotest.OneByteReader(bytes.NewReader(in)), 0)
		l.buf = make([]byte, 0, max(1, piece%16)) // so that it has to grow
		var got [][]byte
		for {
			line, err := l.next(t.Context())
			if err != nil {
				break
			}
			got = append(got, bytes.Clone(line))
		}
		joined := bytes.Join(got, []byte("\n"))
		if bytes.HasSuffix(in, []byte("\n")) {
			joined = append(joined, '\n')
		}
		if !bytes.Equal(joined, in) && len(in) > 0 {
			t.Errorf("%q became %q", in, got)
		}
	})
}
