package session

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/wire"
)

// replay is one page of the log, encoded, and how much of it was sent.
type replay struct {
	buf      []byte
	ends     []uint32
	offsets  []uint64
	next     int           // first element not yet sent
	scanned  uint64        // the page covers everything up to here
	gap      *engine.Range // follows the page's events: cannot be had
	reason   string
	snapshot bool
	passed   []uint32 // conflating: how many superseded events were left out before each element
	block    *budget.Block
}

// take adds the next elements to the run.
func (p *replay) take(r *hub.Run, lim hub.Limits) {
	base := uint32(0)
	if p.next > 0 {
		base = p.ends[p.next-1]
	}
	i := p.next
	for i < len(p.ends) && uint64(i-p.next) < lim.Events && (i == p.next || int(p.ends[i]-base) <= lim.Bytes) {
		i++
	}
	if i == p.next {
		return
	}
	b := p.buf[base:p.ends[i-1]:p.ends[i-1]]
	r.Slices = append(r.Slices, b)
	if p.block != nil {
		p.block.Hold()
		r.Blocks = append(r.Blocks, p.block)
	}
	r.Bytes, r.Events, r.Next, r.Last = len(b), i-p.next, uint64(i), p.offsets[i-1]
	for _, n := range p.passed[min(p.next, len(p.passed)):min(i, len(p.passed))] {
		r.Passed += uint64(n)
	}
}

// fill encodes events; conflating: only the newest of each key.
func (p *replay) fill(events []engine.Event, conflating bool) {
	if conflating {
		events, p.passed = conflate(events)
	}
	size := 0
	for i := range events {
		size += wire.ElementSize(len(events[i].Wire))
	}
	p.buf = make([]byte, 0, size)
	p.ends = make([]uint32, 0, len(events))
	p.offsets = make([]uint64, 0, len(events))
	for i := range events {
		p.buf = wire.AppendElement(p.buf, events[i].Wire)
		p.ends = append(p.ends, uint32(len(p.buf)))
		p.offsets = append(p.offsets, events[i].Offset)
	}
}

// conflate keeps the newest event of each key, in order, and counts those left out before each.
func conflate(events []engine.Event) (kept []engine.Event, passed []uint32) {
	newest := make(map[string]int, len(events))
	for i := range events {
		newest[hub.KeyOf(events[i].Topic.String(), events[i].Wire)] = i
	}
	left := uint32(0)
	for i := range events {
		if newest[hub.KeyOf(events[i].Topic.String(), events[i].Wire)] != i {
			left++
			continue
		}
		kept, passed = append(kept, events[i]), append(passed, left)
		left = 0
	}
	return kept, passed
}

// cost is what the page is counted as.
func (p *replay) cost() int64 { return int64(cap(p.buf) + 12*cap(p.ends)) }

// drop empties the page.
func (p *replay) drop() {
	p.block.Drop()
	*p = replay{}
}

// forget empties a page that can simply be read again: what was told of it stays true.
func (p *replay) forget() {
	if p.block != nil && p.gap == nil && !p.snapshot && p.next < len(p.ends) {
		p.drop()
	}
}

// advance is called when all of the page was sent: it tells of a gap behind it, then joins the feed or asks for the next page.
func (sub *subscription) advance() {
	p := &sub.page
	sub.seen = max(sub.seen, p.scanned)
	if g := p.gap; g != nil {
		sub.countGap()
		sub.notice(runnelv1.NoticeKind_NOTICE_KIND_GAP, g.From, g.To, 0, p.reason)
		sub.seen = max(sub.seen, g.To)
		sub.told = sub.seen
	}
	p.drop()
	if len(sub.snapshot) == 0 {
		if sub.live = sub.o.Feed.Join(&sub.cursor, sub.seen); sub.live {
			if sub.behind {
				sub.setBehind(false)
				sub.notice(runnelv1.NoticeKind_NOTICE_KIND_CAUGHT_UP, sub.seen, sub.seen, 0, "")
			}
			sub.queueLocked()
			sub.s.wake()
			return
		}
	}
	sub.reading = true
	sub.s.cfg.Replayer.read(sub)
}

// read reads the next page, on a worker.
func (sub *subscription) read(ctx context.Context, maxBytes int) {
	s := sub.s
	s.mu.Lock()
	closed, snapshot, after := sub.closed || s.err != nil, sub.snapshot, sub.seen
	s.mu.Unlock()
	if closed {
		return
	}
	p, rest, err := sub.readPage(ctx, snapshot, after, maxBytes)
	p.block = s.cfg.Budget.ForcedBlock(budget.Pages, p.cost())
	s.mu.Lock()
	defer s.mu.Unlock()
	sub.reading = false
	if sub.closed {
		p.drop()
		return
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, engine.ErrClosed), errors.Is(err, engine.ErrDeleted):
		p.drop()
		sub.brokenLocked(err)
		return
	case err != nil:
		s.endLocked(fmt.Errorf("subscription %d: %w", sub.o.ID, err))
		return
	}
	sub.page, sub.snapshot = p, rest
	sub.queueLocked()
	s.wake()
}

func (sub *subscription) readPage(ctx context.Context, snapshot []uint64, after uint64, maxBytes int) (p replay, rest []uint64, err error) {
	var page engine.Page
	if len(snapshot) > 0 {
		page, err = sub.o.Log.ReadAt(ctx, snapshot, maxBytes)
		p.snapshot = true
	} else {
		page, err = sub.o.Log.Read(ctx, engine.ReadRequest{Pattern: sub.o.Pattern, After: after, MaxBytes: maxBytes})
	}
	var gone *engine.PositionGoneError
	if errors.As(err, &gone) {
		return replay{gap: &engine.Range{From: after + 1, To: gone.Oldest - 1}, scanned: after, reason: "removed by retention"}, nil, nil
	}
	if err != nil {
		return p, nil, err
	}
	p.scanned = page.Scanned
	// What lies behind a damaged range waits for the next page, so that the notice keeps its place.
	if len(page.Damaged) > 0 {
		d := page.Damaged[0]
		n := 0
		for n < len(page.Events) && page.Events[n].Offset < d.From {
			n++
		}
		page.Events, p.gap, p.scanned = page.Events[:n], &d, d.To
		p.reason = "stored data is damaged"
		if p.snapshot {
			p.reason = "removed by retention, or damaged"
		}
	}
	p.fill(page.Events, sub.o.conflates() && !p.snapshot)
	if !p.snapshot {
		return p, nil, nil
	}
	for len(snapshot) > 0 && snapshot[0] <= p.scanned {
		snapshot = snapshot[1:]
	}
	p.scanned = 0 // a snapshot lies below the position
	return p, snapshot, nil
}

// Replayer reads pages of the log for all sessions that are behind, a few at a time: that is what paces a mass resume. Each
// page is asked for when the one before was sent, so a reader that takes nothing holds one page and no worker.
type Replayer struct {
	cond  *sync.Cond
	stuck atomic.Int64 // bytes of pages that do not move

	mu     sync.Mutex // guards what follows
	queue  []*subscription
	closed bool
}

// Page sizes: as long as few are behind, large pages; the memory of many is bounded.
const (
	maxPage    = 256 << 10
	minPage    = 32 << 10
	pageBudget = 64 << 20
)

// NewReplayer starts nothing: Run does.
func NewReplayer() *Replayer {
	r := &Replayer{}
	r.cond = sync.NewCond(&r.mu)
	return r
}

// Run reads pages with a number of workers until ctx ends, and waits for them.
func (r *Replayer) Run(ctx context.Context, workers int) {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		r.closed = true
		r.cond.Broadcast()
		r.mu.Unlock()
	})
	defer stop()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			pprof.Do(ctx, pprof.Labels("runnel", "replay"), r.work)
		})
	}
	group.Wait()
}

func (r *Replayer) work(ctx context.Context) {
	for {
		r.mu.Lock()
		for len(r.queue) == 0 && !r.closed {
			r.cond.Wait()
		}
		if r.closed {
			r.mu.Unlock()
			return
		}
		sub := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		waiting := len(r.queue)
		size := max(minPage, min(maxPage, pageBudget/(waiting+1)))
		r.mu.Unlock()
		b := sub.s.cfg.Budget
		if waiting > paceAbove && r.moderate(ctx, b) != nil {
			return
		}
		size = min(size, int(b.Share(budget.Pages)/8))
		if b.Wait(ctx, budget.Pages, int64(size)) != nil {
			return
		}
		// What the page really takes is counted once it is known.
		b.Give(budget.Pages, int64(size))
		sub.read(ctx, size)
	}
}

// When many are behind, pages are read no faster than transports take them, so that a mass resume leaves the processors to live events:
// above paceBytes that are on their way the next page waits. What has not moved for paceMost is with clients that read nothing, and counts
// no longer.
const (
	paceAbove = 8 // subscriptions that wait
	paceBytes = 128 << 10
	paceEvery = time.Millisecond
	paceMost  = 20 * time.Millisecond
)

// moderate waits until few enough pages are on their way.
func (r *Replayer) moderate(ctx context.Context, b *budget.Budget) error {
	if r.few(b) {
		return nil
	}
	t := time.NewTicker(paceEvery)
	defer t.Stop()
	for began := time.Now(); !r.few(b); {
		if time.Since(began) >= paceMost {
			r.stuck.Store(b.Used(budget.Pages))
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (r *Replayer) few(b *budget.Budget) bool {
	used, stuck := b.Used(budget.Pages), r.stuck.Load()
	if used < stuck {
		r.stuck.Store(used)
	}
	return used-stuck < paceBytes
}

// read queues a subscription; each waits at most once.
func (r *Replayer) read(sub *subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, sub)
	r.cond.Signal()
}
