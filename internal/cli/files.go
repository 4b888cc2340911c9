package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// errQuiet says that nothing came for a while.
var errQuiet = errors.New("nothing came for a while")

// pollEvery is how long a wait for a file may overlook that its context has ended.
const pollEvery = 100 * time.Millisecond

// await waits until a read of r would not block. It ends with ctx's error, or with errQuiet after quiet (0: never). Where the
// system cannot tell, or r is not a file, it returns at once.
//
// A blocked read of a terminal or a pipe cannot be interrupted; waiting like this needs neither a goroutine that would outlive
// its command, nor a file mode that would be shared with the shell.
func await(ctx context.Context, r io.Reader, quiet time.Duration) error {
	f, ok := r.(*os.File)
	for began := time.Now(); ; {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !ok || readable(f, pollEvery):
			return nil
		case quiet > 0 && time.Since(began) >= quiet:
			return errQuiet
		}
	}
}

// patientReader reads r, and ends with ctx's error while it waits for it.
type patientReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (p *patientReader) Read(b []byte) (int, error) {
	if err := await(p.ctx, p.r, 0); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

// isTerminal says whether w is one. The null device is a character device too, but shows nothing to anybody.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(null, info)
}
