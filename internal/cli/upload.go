package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
)

// What is sent is held until the server confirms it: at most this much, and, where a server has its default window for
// event ids (2 minutes), never so long that sending it again could store it twice.
const (
	heldEvents = 16384
	heldBytes  = 4 << 20
	heldTime   = 10 * time.Second
)

// uploader publishes events in order over as many bulk uploads as it takes. Each event has an id made of a prefix that is
// random for this run and the event's number, and is held until its upload is confirmed. When a connection breaks, what is held
// is sent again with the same ids: what had been stored is recognised, and nothing is lost or stored twice. It belongs to one
// goroutine.
type uploader struct {
	client *runnel.Client
	topic  string
	opts   []runnel.PublishOption
	broken func(err error, held int) // called when a connection breaks and what is held will be sent again
	run    string

	sum     runnel.Summary // of what is confirmed
	payload []byte         // of all held events, one after the other
	ends    []int          // where each of them ends
	oldest  time.Time      // when the first of them came

	up     *runnel.Upload // nil: none is open
	sent   int            // held events sent on it
	cancel context.CancelFunc
}

func newUploader(client *runnel.Client, topic string, opts []runnel.PublishOption) *uploader {
	return &uploader{
		client: client, topic: topic, opts: opts, run: fmt.Sprintf("%016x", rand.Uint64()),
		sum: runnel.Summary{FirstFailed: -1}, broken: func(error, int) {},
	}
}

// add publishes one event, and returns before it is confirmed.
func (u *uploader) add(ctx context.Context, payload []byte) error {
	if len(u.ends) == 0 {
		u.oldest = time.Now()
	}
	u.payload = append(u.payload, payload...)
	u.ends = append(u.ends, len(u.payload))
	if len(u.ends) >= heldEvents || len(u.payload) >= heldBytes || time.Since(u.oldest) > heldTime {
		return u.confirm(ctx)
	}
	return u.insist(ctx, u.push)
}

// confirm waits until everything so far is as durable as its namespace promises.
func (u *uploader) confirm(ctx context.Context) error {
	if len(u.ends) == 0 {
		return nil
	}
	return u.insist(ctx, func(ctx context.Context) error {
		if err := u.push(ctx); err != nil {
			return err
		}
		s, err := u.up.Close()
		if err != nil {
			return err
		}
		u.close()
		u.stored(&s)
		u.payload, u.ends, u.sent = u.payload[:0], u.ends[:0], 0
		return nil
	})
}

func (u *uploader) stored(s *runnel.Summary) {
	u.sum.Received += s.Received
	u.sum.Accepted += s.Accepted
	u.sum.Duplicates += s.Duplicates
	if s.Accepted > 0 {
		u.sum.Last = s.Last
	}
}

// push sends what is held and was not sent yet.
func (u *uploader) push(ctx context.Context) error {
	if u.up == nil {
		ctx, u.cancel = context.WithCancel(ctx)
		up, err := u.client.Upload(ctx)
		if err != nil {
			u.cancel()
			return err
		}
		u.up, u.sent = up, 0
	}
	opts := slices.Grow(slices.Clone(u.opts), 1)
	id := append([]byte(u.run), '-')
	for ; u.sent < len(u.ends); u.sent++ {
		begin := 0
		if u.sent > 0 {
			begin = u.ends[u.sent-1]
		}
		id = strconv.AppendUint(id[:len(u.run)+1], u.sum.Accepted+uint64(u.sent)+1, 10)
		if err := u.up.Send(u.topic, u.payload[begin:u.ends[u.sent]], append(opts, runnel.ID(string(id)))...); err != nil {
			return err
		}
	}
	return nil
}

// close forgets the open upload.
func (u *uploader) close() {
	if u.up != nil {
		u.cancel()
		u.up = nil
	}
}

// insist repeats f, which begins where the last confirmation was, while it fails in a way that passes.
func (u *uploader) insist(ctx context.Context, f func(context.Context) error) error {
	var since time.Time
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := f(ctx)
		if err == nil {
			return nil
		}
		u.close()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if u.progressed(err) {
			since, wait = time.Time{}, 50*time.Millisecond
		}
		if !passes(err) || !since.IsZero() && time.Since(since) > patience {
			return u.failed(err)
		}
		if since.IsZero() {
			since = time.Now()
			u.broken(err, len(u.ends))
		}
		pause := time.NewTimer(retryAfter(err) + wait/2 + rand.N(wait/2))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// progressed takes what a refused upload has stored all the same out of what is held, and says whether that is anything. A limit on the
// rate lets through so much at a time.
func (u *uploader) progressed(err error) bool {
	var e *runnel.Error
	if !passes(err) || !errors.As(err, &e) || e.Summary == nil || e.Summary.Accepted == 0 || e.Summary.Accepted > uint64(len(u.ends)) {
		return false
	}
	n := int(e.Summary.Accepted)
	cut := u.ends[n-1]
	u.payload = append(u.payload[:0], u.payload[cut:]...)
	rest := u.ends[:0]
	for _, end := range u.ends[n:] {
		rest = append(rest, end-cut)
	}
	u.ends, u.sent = rest, 0
	u.stored(e.Summary)
	e.Summary = nil // it is counted
	return true
}

// retryAfter is how long the server asked to wait.
func retryAfter(err error) time.Duration {
	var e *runnel.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// passes says that the same upload may succeed later: the server says so, or the connection broke.
func passes(err error) bool {
	var e *runnel.Error
	switch {
	case !errors.As(err, &e):
		return errors.Is(err, io.EOF)
	case e.FromServer:
		return e.RetryAfter > 0
	}
	return e.Code == codes.Unavailable || e.Code == codes.Internal || e.Code == codes.Unknown || e.Code == codes.Canceled
}

// failed completes the summary for an upload that has ended for good.
func (u *uploader) failed(err error) error {
	var e *runnel.Error
	if !errors.As(err, &e) || e.Summary == nil {
		return err
	}
	if e.Summary.FirstFailed >= 0 {
		u.sum.FirstFailed = int64(u.sum.Accepted) + e.Summary.FirstFailed
	}
	u.stored(e.Summary)
	return err
}
