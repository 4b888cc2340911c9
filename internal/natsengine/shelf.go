package natsengine

import (
	"context"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/ring"
	"github.com/runnelhq/runnel/internal/topic"
)

const (
	// A shelf holds books that begin at the same places for everybody, so that those who read the same part share one direct get.
	bookEvents = getEvents
	// manyReads is how many reads by pattern in a second are many. Beyond that they share the log, whatever their patterns, instead of
	// having NATS look for each what matches.
	manyReads = 32
	// pageBooks is how many books a page by pattern looks through at most, so that it ends in time.
	pageBooks = 16
)

// shelf holds parts of a log that were read from the stream of late.
type shelf struct {
	mu    sync.Mutex
	books map[uint64]*book // by first offset
	order []*book          // oldest first; of those that are there
	bytes int
	reads int // by pattern, in this second
	had   int // and in the one before
}

// book is a part of a log: dense, and never changed once it is there.
type book struct {
	first  uint64
	there  chan struct{} // closed when it is read
	events []engine.Event
	bytes  int
	err    error
}

// many counts a read by pattern and reports whether there are many.
func (s *shelf) many() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	return max(s.reads, s.had) > manyReads
}

func (s *shelf) second() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads, s.had = 0, s.reads
}

// clear forgets everything: the log has a new epoch, or is over.
func (s *shelf) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.books, s.order, s.bytes = nil, nil, 0
}

// open returns the book that begins at an offset; mine says that the caller must read it and call add.
func (s *shelf) open(first uint64) (b *book, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.books[first]; b != nil {
		return b, false
	}
	if s.books == nil {
		s.books = map[uint64]*book{}
	}
	b = &book{first: first, there: make(chan struct{})}
	s.books[first] = b
	return b, true
}

// add puts a book that was read on the shelf, and takes the oldest off it. One that has nothing is read again by the next who wants it.
func (s *shelf) add(b *book, most int) {
	for i := range b.events {
		b.bytes += ring.EventCost + len(b.events[i].Wire)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(b.there)
	if s.books[b.first] != b { // cleared meanwhile
		return
	}
	if len(b.events) == 0 {
		delete(s.books, b.first)
		return
	}
	s.order = append(s.order, b)
	for s.bytes += b.bytes; s.bytes > most && len(s.order) > 0; {
		old := s.order[0]
		s.order[0], s.order = nil, s.order[1:]
		s.bytes -= old.bytes
		delete(s.books, old.first)
	}
}

// from returns events from an offset on, as many as one book has; none if the stream must be looked at more closely.
func (l *log) from(ctx context.Context, offset uint64) ([]engine.Event, error) {
	s := l.State()
	first := max((offset-1)/bookEvents*bookEvents+1, s.Oldest)
	end := min((offset-1)/bookEvents*bookEvents+bookEvents, s.Head)
	for first <= offset {
		b, mine := l.shelf.open(first)
		if mine {
			b.events, b.err = l.readBook(ctx, first, end)
			l.shelf.add(b, l.e.ringBytes())
		}
		select {
		case <-b.there:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		switch n := uint64(len(b.events)); {
		case b.err != nil && ctx.Err() == nil && !mine: // it may have been only its reader's trouble
			return nil, nil
		case b.err != nil:
			return nil, b.err
		case n == 0:
			return nil, nil
		case first+n > offset:
			return b.events[offset-first:], nil
		default: // it ended early: at what was head then, or because it is large
			first += n
		}
	}
	return nil, nil
}

// readBook reads what is dense from an offset on.
func (l *log) readBook(ctx context.Context, first, end uint64) ([]engine.Event, error) {
	g, err := l.get(ctx, getRequest{Sequence: first, Batch: int(end - first + 1), MaxBytes: getBytes})
	if err != nil {
		return nil, l.readError(ctx, err)
	}
	events := make([]engine.Event, 0, len(g.messages))
	var last topic.Name
	for _, m := range g.messages {
		ev, ok := m.event(&last)
		if !ok || m.offset != first+uint64(len(events)) || m.offset > end {
			break
		}
		events = append(events, ev)
	}
	return events, nil
}

// readShared fills a page from the shelf; false if nothing of it was there.
func (l *log) readShared(ctx context.Context, p *page) (bool, error) {
	for n := 0; n < pageBooks && p.Scanned < p.r.To; n++ {
		events, err := l.from(ctx, p.Scanned+1)
		if err != nil && p.Scanned == p.r.After {
			return false, err
		}
		if err != nil || len(events) == 0 {
			break
		}
		for _, ev := range events {
			if ev.Offset > p.r.To || !p.take(ev) {
				return true, nil
			}
		}
		if p.r.Pattern == (topic.Pattern{}) {
			break // one book makes a page
		}
	}
	return p.Scanned > p.r.After, nil
}
