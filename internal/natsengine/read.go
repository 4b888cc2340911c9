package natsengine

import (
	"context"
	"errors"
	"fmt"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Bounds of a page where the request names none.
const (
	pageEvents = 4096
	pageBytes  = 256 << 10
)

// frontier is how near to the oldest event of a log with retention a read looks at every event. Replicas remove events each for
// itself, so one may miss what others still have; that shows where offsets are dense, and not where they are filtered.
const frontier = 1024

// errStale: a replica has less than the node has seen.
var errStale = errors.New("the replicas that answer are behind")

// Read implements engine.Log: recent events from memory, older ones from any replica.
func (l *log) Read(ctx context.Context, r engine.ReadRequest) (engine.Page, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	before := l.State().Epoch
	p, err := l.read(ctx, r)
	if s := l.State(); err == nil && s.Epoch != before { // the page may be of two epochs
		return engine.Page{}, &engine.EpochChangedError{Epoch: s.Epoch, Head: s.Head}
	}
	return p, err
}

func (l *log) read(ctx context.Context, r engine.ReadRequest) (engine.Page, error) {
	s, err := l.view(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	if !s.History {
		return engine.Page{Scanned: max(r.After, s.Head)}, nil
	}
	if r.To == 0 || r.To > s.Head {
		r.To = s.Head
	}
	if r.After+1 < s.Oldest {
		return engine.Page{}, gone(s)
	}
	if r.MaxScan > 0 {
		r.To = min(r.To, r.After+uint64(r.MaxScan))
	}
	p := newPage(r)
	if r.After >= r.To || l.readRing(p) {
		return p.Page, nil
	}
	if err := l.readStream(ctx, p); err != nil {
		return engine.Page{}, err
	}
	return p.Page, nil
}

// page is an engine.Page being filled.
type page struct {
	engine.Page
	r     engine.ReadRequest
	bytes int
	topic topic.Name // of the event before
}

func newPage(r engine.ReadRequest) *page {
	if r.MaxEvents <= 0 {
		r.MaxEvents = pageEvents
	}
	if r.MaxBytes <= 0 {
		r.MaxBytes = pageBytes
	}
	return &page{Page: engine.Page{Scanned: r.After}, r: r}
}

func (p *page) matches(n topic.Name) bool {
	return p.r.Pattern == (topic.Pattern{}) || p.r.Pattern.Match(n)
}

// take adds an event; false if the page is full.
func (p *page) take(ev engine.Event) bool {
	if !p.matches(ev.Topic) {
		p.Scanned = ev.Offset
		return true
	}
	if len(p.Events) > 0 && (len(p.Events) >= p.r.MaxEvents || p.bytes+len(ev.Wire) > p.r.MaxBytes) {
		return false
	}
	p.Events = append(p.Events, ev)
	p.bytes += len(ev.Wire)
	p.Scanned = ev.Offset
	return true
}

// add adds a stored message; false if the page is full.
func (p *page) add(s stored) bool {
	ev, ok := s.event(&p.topic)
	if !ok {
		p.damaged(s.offset, s.offset)
		p.Scanned = s.offset
		return true
	}
	return p.take(ev)
}

func (p *page) damaged(from, to uint64) {
	if n := len(p.Damaged); n > 0 && p.Damaged[n-1].To+1 == from {
		p.Damaged[n-1].To = to
		return
	}
	p.Damaged = append(p.Damaged, engine.Range{From: from, To: to})
}

// readRing fills a page from memory; false if memory does not reach back that far.
func (l *log) readRing(p *page) bool {
	found := false
	for p.Scanned < p.r.To {
		l.mu.Lock()
		events := l.recent.From(p.Scanned + 1)
		if above := l.recent.Above(p.Scanned + 1); len(events) == 0 && above > 0 && !found {
			p.r.To = min(p.r.To, above-1) // from there on memory serves the next page
		}
		l.mu.Unlock()
		if len(events) == 0 {
			return found
		}
		found = true
		for _, ev := range events {
			if ev.Offset > p.r.To || !p.take(ev) {
				return true
			}
		}
	}
	return true
}

// readStream fills a page from the stream.
func (l *log) readStream(ctx context.Context, p *page) error {
	subject := l.subjectOf(p.r.Pattern)
	if subject == "" || l.shelf.many() {
		if done, err := l.readShared(ctx, p); done || err != nil {
			return err
		}
	}
	dense := subject == "" || p.r.After+1 < l.State().Oldest+l.frontier()
	for n := 0; ; n++ {
		var err error
		if dense {
			err = l.readDense(ctx, p)
		} else {
			err = l.readFiltered(ctx, p, subject)
		}
		switch {
		case err == nil && p.Scanned > p.r.After:
			return nil
		case err == nil: // too near to the oldest event, which has moved
			dense = true
			if n < staleAttempts {
				continue
			}
			err = errStale
		}
		if !errors.Is(err, errStale) {
			return err
		}
		if n >= staleAttempts {
			return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
		}
		if err := pause(ctx, n); err != nil {
			return err
		}
	}
}

// frontier is 0 where nothing is ever removed by itself.
func (l *log) frontier() uint64 {
	if cfg := l.cfg.Load(); cfg.MaxAge == 0 && cfg.MaxBytes == 0 && cfg.MaxEvents == 0 {
		return 0
	}
	return frontier
}

// subjectOf is the subject for a pattern; empty for all of the log.
func (l *log) subjectOf(p topic.Pattern) string {
	if p == (topic.Pattern{}) {
		return ""
	}
	return l.e.o.subject(p.String())
}

// readDense reads every event and looks for holes. A page with nothing scanned was not read because of a replica that is behind.
func (l *log) readDense(ctx context.Context, p *page) error {
	want := getEvents
	if p.r.Pattern == (topic.Pattern{}) {
		want = min(want, p.r.MaxEvents)
	}
	g, err := l.get(ctx, getRequest{Sequence: p.Scanned + 1, Batch: int(min(uint64(want), p.r.To-p.Scanned)), MaxBytes: min(getBytes, p.r.MaxBytes)})
	if err != nil {
		return l.readError(ctx, err)
	}
	for _, m := range g.messages {
		to := min(m.offset-1, p.r.To)
		if to > p.Scanned {
			if more, err := l.hole(ctx, p, to); err != nil || !more {
				return err
			}
		}
		if m.offset > p.r.To || !p.add(m.stored) {
			return nil
		}
	}
	if p.Scanned < p.r.To && !g.pending { // the replica has no more
		_, err = l.hole(ctx, p, p.r.To)
	}
	return err
}

// hole finds out why events behind p.Scanned up to an offset are not there: they were trimmed, or the replica is behind, or they
// are lost or were deleted one by one. More: the page goes on behind them.
func (l *log) hole(ctx context.Context, p *page, to uint64) (more bool, err error) {
	i, err := l.refresh(ctx)
	if err != nil {
		return false, err
	}
	from := p.Scanned + 1
	if oldest := i.State.oldest(); from < oldest {
		if p.Scanned > p.r.After {
			return false, nil // the next page will say it
		}
		return false, gone(l.State())
	}
	if i.State.Last < to { // so is the leader
		return false, errStale
	}
	s, ok, err := l.ask(ctx, getRequest{Sequence: from, Next: ">"})
	switch {
	case err != nil:
		return false, l.readError(ctx, err)
	case ok && s.offset == from:
		if p.Scanned > p.r.After {
			return false, nil
		}
		return false, errStale
	case ok && s.offset <= to:
		to = s.offset - 1
		more = false
	default:
		more = true
	}
	p.damaged(from, to)
	p.Scanned = to
	return more, nil
}

// readFiltered reads the events of a pattern. What a replica lacks at its end the leader tells; what it lacks at its beginning
// cannot be among them, since the page begins well behind what any replica may have removed. Near that the page is left empty.
func (l *log) readFiltered(ctx context.Context, p *page, subject string) error {
	g, err := l.get(ctx, getRequest{
		Sequence: p.Scanned + 1, Next: subject, Batch: min(getEvents, p.r.MaxEvents), MaxBytes: min(getBytes, p.r.MaxBytes),
	})
	if err != nil {
		return l.readError(ctx, err)
	}
	end, full := p.Scanned, false
	for _, m := range g.messages {
		if m.offset > p.r.To {
			end, full = p.r.To, true
			break
		}
		if !p.add(m.stored) {
			full = true
			break
		}
		end = m.offset
	}
	if !full && !g.pending {
		s, ok, err := l.ask(ctx, getRequest{Sequence: end + 1, Next: subject})
		switch {
		case err != nil:
			return l.readError(ctx, err)
		case !ok || s.offset > p.r.To:
			end = p.r.To
		case p.add(s):
			end = s.offset
		}
	}
	i, err := l.refresh(ctx)
	if err != nil {
		return err
	}
	if oldest := i.State.oldest(); p.r.After+1 < oldest {
		return gone(l.State())
	} else if near := p.r.After+1 < oldest+l.frontier(); near || end == p.r.To && i.State.Last < end {
		*p = *newPage(p.r)
		if near {
			return nil
		}
		return errStale // so is the leader
	}
	p.Scanned = end
	return nil
}

// ReadAt implements engine.Log.
func (l *log) ReadAt(ctx context.Context, offsets []uint64, maxBytes int) (engine.Page, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	if !s.History {
		return engine.Page{}, engine.ErrNoHistory
	}
	p := newPage(engine.ReadRequest{MaxBytes: maxBytes, MaxEvents: max(1, len(offsets))})
	for _, offset := range offsets {
		if offset < s.Oldest || offset > s.Head {
			p.damaged(offset, offset)
			p.Scanned = offset
			continue
		}
		ev, ok, err := l.at(ctx, offset, &p.topic)
		if err != nil {
			return engine.Page{}, err
		}
		if !ok {
			p.damaged(offset, offset)
			p.Scanned = offset
			continue
		}
		if !p.take(ev) {
			break
		}
	}
	return p.Page, nil
}

// at returns one event at or below head; false if it is not there.
func (l *log) at(ctx context.Context, offset uint64, name *topic.Name) (engine.Event, bool, error) {
	l.mu.Lock()
	events := l.recent.From(offset)
	l.mu.Unlock()
	if len(events) > 0 {
		return events[0], true, nil
	}
	g, err := l.get(ctx, getRequest{Sequence: offset})
	if err != nil {
		return engine.Event{}, false, l.readError(ctx, err)
	}
	var s stored
	ok := len(g.messages) > 0
	if ok {
		s = g.messages[0].stored
	} else if s, ok, err = l.ask(ctx, getRequest{Sequence: offset}); err != nil {
		return engine.Event{}, false, l.readError(ctx, err)
	}
	if !ok {
		return engine.Event{}, false, nil
	}
	ev, ok := s.event(name)
	return ev, ok, nil
}
