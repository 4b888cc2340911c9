package enginetest

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// The reading half of the model.

// begin is what every lookup does first. It holds mu until the returned function is called.
func (l *modelLog) begin(ctx context.Context) (engine.State, func(), error) {
	if l.e.isClosed() {
		return engine.State{}, nil, engine.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return engine.State{}, nil, err
	}
	if err := l.deleted(); err != nil {
		return engine.State{}, nil, err
	}
	l.mu.Lock()
	return l.stateLocked(), l.mu.Unlock, nil
}

func matches(p topic.Pattern, n topic.Name) bool { return p == topic.Pattern{} || p.Match(n) }

func (l *modelLog) Read(ctx context.Context, r engine.ReadRequest) (engine.Page, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	defer unlock()
	if !l.keeps() {
		return engine.Page{Scanned: max(r.After, s.Head)}, nil
	}
	if r.After+1 < s.Oldest && l.bug != "trimming makes a silent hole" {
		return engine.Page{}, &engine.PositionGoneError{Oldest: s.Oldest, Newest: s.Head}
	}
	if l.bug == "trimmed while it is read" {
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		l.trimLocked()
	}
	to := s.Head
	if r.To > 0 {
		to = min(to, r.To)
	}
	page := engine.Page{Scanned: r.After}
	bytes, scanned := 0, 0
	for o := max(r.After+1, l.s.oldest); o <= to; o++ {
		ev := l.eventLocked(o)
		match := matches(r.Pattern, ev.Topic)
		over := r.MaxEvents > 0 && len(page.Events) == r.MaxEvents || r.MaxBytes > 0 && bytes+len(ev.Wire) > r.MaxBytes
		switch {
		case match && over && len(page.Events) > 0 && l.bug == "a full page claims the rest":
			page.Scanned = to
			return page, nil
		case r.MaxScan > 0 && scanned == r.MaxScan && l.bug != "scans without bound",
			match && over && len(page.Events) > 0 && l.bug != "pages without bound":
			return page, nil
		}
		scanned++
		if page.Scanned = o; match {
			page.Events = append(page.Events, ev)
			bytes += len(ev.Wire)
		}
	}
	page.Scanned = max(page.Scanned, min(to, s.Head))
	return page, nil
}

func (l *modelLog) ReadAt(ctx context.Context, offsets []uint64, maxBytes int) (engine.Page, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return engine.Page{}, err
	}
	defer unlock()
	if !l.keeps() {
		return engine.Page{}, engine.ErrNoHistory
	}
	var page engine.Page
	bytes := 0
	for _, o := range offsets {
		if o < s.Oldest || o > s.Head {
			if page.Scanned = o; l.bug != "ReadAt hides what is gone" {
				page.Damaged = append(page.Damaged, engine.Range{From: o, To: o})
			}
			continue
		}
		ev := l.eventLocked(o)
		if bytes += len(ev.Wire); len(page.Events) > 0 && bytes > maxBytes {
			return page, nil
		}
		page.Events, page.Scanned = append(page.Events, ev), o
	}
	return page, nil
}

// downLocked returns the retained offsets that match, at or below upTo, the newest first.
func (l *modelLog) downLocked(p topic.Pattern, upTo uint64) []uint64 {
	var list []uint64
	if !l.keeps() {
		return nil
	}
	for o := min(upTo, l.head); o >= l.s.oldest && o > 0; o-- {
		if matches(p, l.s.events[o-1].entry.Topic) {
			list = append(list, o)
		}
	}
	return list
}

func (l *modelLog) LastOffsets(ctx context.Context, p topic.Pattern, upTo uint64, limit int) ([]uint64, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if l.bug == "LastOffsets ignores upTo" {
		upTo = s.Head
	}
	seen := map[topic.Name]bool{}
	var list []uint64
	for _, o := range l.downLocked(p, upTo) {
		if n := l.s.events[o-1].entry.Topic; !seen[n] {
			seen[n] = true
			list = append(list, o)
		}
	}
	if len(list) > limit {
		return nil, &engine.TooManyTopicsError{Limit: limit}
	}
	slices.Sort(list)
	return list, nil
}

func (l *modelLog) AfterLast(ctx context.Context, p topic.Pattern, n int, upTo uint64) (uint64, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	list := l.downLocked(p, upTo)
	switch {
	case !l.keeps():
		return s.Head, nil
	case n > len(list):
		return s.Oldest - 1, nil
	case l.bug == "AfterLast is one off":
		return list[n-1], nil
	}
	return list[n-1] - 1, nil
}

func (l *modelLog) BeforeTime(ctx context.Context, t int64) (uint64, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil || !l.keeps() {
		return s.Head, err
	}
	defer unlock()
	for o := s.Oldest; o <= s.Head; o++ {
		if at := l.s.events[o-1].time; at > t || at == t && l.bug != "BeforeTime leaves out the moment itself" {
			return o - 1, nil
		}
	}
	return s.Head, nil
}

func (l *modelLog) Topic(ctx context.Context, n topic.Name) (engine.TopicState, bool, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return engine.TopicState{}, false, err
	}
	defer unlock()
	list := l.downLocked(n.Pattern(), s.Head)
	if len(list) == 0 {
		return engine.TopicState{}, false, nil
	}
	return engine.TopicState{Topic: n, Oldest: list[len(list)-1], Newest: list[0], Last: l.eventLocked(list[0])}, true, nil
}

func (l *modelLog) Topics(ctx context.Context, p topic.Pattern, after string, limit int) ([]engine.TopicState, bool, error) {
	s, unlock, err := l.begin(ctx)
	if err != nil {
		return nil, false, err
	}
	names := map[topic.Name]bool{}
	for _, o := range l.downLocked(p, s.Head) {
		if n := l.s.events[o-1].entry.Topic; n.String() > after || l.bug == "Topics begins at the name" && n.String() == after {
			names[n] = true
		}
	}
	unlock()
	var list []engine.TopicState
	for n := range names {
		t, ok, err := l.Topic(ctx, n)
		if err != nil {
			return nil, false, err
		}
		if ok {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b engine.TopicState) int { return strings.Compare(a.Topic.String(), b.Topic.String()) })
	more := len(list) > limit
	return list[:min(len(list), limit)], more && l.bug != "Topics never says more", nil
}

type modelTail struct {
	l      *modelLog
	epoch  string
	next   uint64
	once   sync.Once
	closed chan struct{}
}

func (l *modelLog) Tail(after uint64) (engine.Tail, error) {
	if l.e.isClosed() {
		return nil, engine.ErrClosed
	}
	if err := l.deleted(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &modelTail{l: l, epoch: l.stateLocked().Epoch, next: after + 1, closed: make(chan struct{})}
	switch {
	case !l.keeps():
		t.next = l.head + 1
	case l.bug == "a tail skips one at the seam" && after == l.head:
		t.next = uint64(len(l.s.events)) + 1 // what is being committed counts as seen
	}
	return t, nil
}

func (t *modelTail) Close() {
	t.once.Do(func() { close(t.closed) })
}

func (t *modelTail) Next(ctx context.Context) (engine.Page, error) {
	for {
		page, moved, err := t.take()
		if err != nil || moved == nil {
			return page, err
		}
		closed := t.closed
		if t.l.bug == "a closed tail sleeps on" {
			closed = nil
		}
		select {
		case <-moved:
		case <-closed:
		case <-t.l.e.done:
		case <-ctx.Done():
			return engine.Page{}, ctx.Err()
		}
	}
}

func (t *modelTail) take() (page engine.Page, moved <-chan struct{}, err error) {
	l := t.l
	select {
	case <-t.closed:
		return page, nil, engine.ErrClosed
	default:
		if l.e.isClosed() {
			return page, nil, engine.ErrClosed
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stateLocked()
	switch {
	case l.gone && l.bug != "deleting forgets the tails":
		return page, nil, engine.ErrDeleted
	case s.Epoch != t.epoch && l.bug != "a tail goes on into the next epoch":
		return page, nil, &engine.EpochChangedError{Epoch: s.Epoch, Head: s.Head}
	case t.next > s.Head:
		return page, l.moved, nil
	case l.keeps() && t.next < s.Oldest:
		if page.Scanned = s.Oldest - 1; l.bug != "a tail hides what was trimmed" {
			page.Damaged = []engine.Range{{From: t.next, To: s.Oldest - 1}}
		}
		t.next = s.Oldest
		return page, nil, nil
	}
	for o := t.next; o <= s.Head && len(page.Events) < 50; o++ {
		page.Events, page.Scanned = append(page.Events, l.eventLocked(o)), o
	}
	if t.next = page.Scanned + 1; l.bug == "a tail repeats the last event of a page" && len(page.Events) == 50 {
		t.next--
	}
	return page, nil, nil
}
