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

// await waits until a read of r would not block. It ends with ctx's error, or with errQuiet after quiet. Where the system cannot
// tell, or r is not a file, it returns at once.
//
// A blocked read of a terminal or a pipe cannot be interrupted; waiting like this needs neither a goroutine that would outlive
// its command, nor a file mode that would be shared with the shell.
func await(ctx context.Context, r io.Reader, quiet time.Duration) error {
	f, ok := r.(*os.File)
	for deadline := time.Now().Add(quiet); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !ok || readable(f, min(quiet, pollEvery)) {
			return nil
		}
		if time.Now().After(deadline) {
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
	for {
		err := await(p.ctx, p.r, time.Minute)
		if err == nil {
			return p.r.Read(b)
		}
		if !errors.Is(err, errQuiet) {
			return 0, err
		}
	}
}

// isTerminal says whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice|os.ModeCharDevice && f.Name() != os.DevNull && !isNull(info)
}

// isNull says whether a file is the null device, which is a character device but shows nothing to anybody.
func isNull(info os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(null, info)
}
