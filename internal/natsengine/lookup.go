package natsengine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

const (
	// newestOf is of how many topics the newest events are asked for at once.
	newestOf = 64
	// describeAtOnce is how many topics are described side by side.
	describeAtOnce = 4
)

// subjects lists the subjects that match a pattern, in byte order, as the leader has them.
func (l *log) subjects(ctx context.Context, p topic.Pattern) ([]string, error) {
	if n, ok := p.Exact(); ok {
		return []string{l.e.o.subject(n.String())}, nil
	}
	filter := l.subjectOf(p)
	if filter == "" {
		filter = ">"
	}
	var list []string
	for {
		i, err := l.e.info(ctx, l.stream, &infoRequest{Filter: filter, Offset: len(list)})
		if err != nil {
			return nil, l.readError(ctx, err)
		}
		for s := range i.State.Subjects {
			list = append(list, s)
		}
		if len(i.State.Subjects) == 0 || len(list) >= i.Total {
			slices.Sort(list)
			return slices.Compact(list), nil
		}
	}
}

// newest returns the newest messages of subjects, at most newestOf of them, in order of offset. The replica has at least what
// lies at an offset and below.
func (l *log) newest(ctx context.Context, subjects []string, least uint64) ([]message, error) {
	for n := 0; ; n++ {
		g, err := l.get(ctx, getRequest{LastOf: subjects})
		if err != nil {
			return nil, l.readError(ctx, err)
		}
		if g.upTo >= least {
			return g.messages, nil
		}
		// A replica that has none of them does not say how far it is. The leader knows.
		if len(g.messages) == 0 {
			found := false
			for _, s := range subjects {
				_, ok, err := l.ask(ctx, getRequest{Last: s})
				if err != nil {
					return nil, l.readError(ctx, err)
				}
				found = found || ok
			}
			if !found {
				return nil, nil
			}
		}
		if n >= staleAttempts {
			return nil, apiError("cannot read stream "+l.stream, errStaleAway)
		}
		if err := pause(ctx, n); err != nil {
			return nil, err
		}
	}
}

var errStaleAway = errors.Join(errSilent, errStale)

// lastAt is the offset of a topic's newest event at or below upTo (0: of all), as the leader knows it; 0 if there is none.
func (l *log) lastAt(ctx context.Context, n topic.Name, upTo uint64) (offset uint64, time int64, err error) {
	subject := l.e.o.subject(n.String())
	if upTo == 0 {
		s, _, err := l.ask(ctx, getRequest{Last: subject})
		return s.offset, s.time, err
	}
	g, err := l.get(ctx, getRequest{LastOf: []string{subject}, UpTo: upTo})
	if err != nil {
		return 0, 0, err
	}
	var last stored
	if len(g.messages) > 0 {
		last = g.messages[0].stored
	}
	for {
		s, ok, err := l.ask(ctx, getRequest{Sequence: last.offset + 1, Next: subject})
		if err != nil {
			return 0, 0, err
		}
		if !ok || s.offset > upTo {
			return last.offset, last.time, nil
		}
		last = s
	}
}

// findID looks for an event that was stored under an entry's id, as long as ids are remembered.
func (l *log) findID(ctx context.Context, en *engine.Entry) (engine.Result, bool, error) {
	window := l.e.o.settings(l.name, *l.cfg.Load()).Duplicates
	start := time.Now().Add(-window)
	id := hashID(en.Topic, en.ID)
	r := getRequest{Start: &start, Next: l.e.o.subject(en.Topic.String()), Batch: getEvents, MaxBytes: getBytes}
	for {
		g, err := l.get(ctx, r)
		if err != nil {
			return engine.Result{}, false, err
		}
		for _, m := range g.messages {
			if m.id == id {
				return engine.Result{Offset: m.offset, Timestamp: m.time, Duplicate: true}, true, l.await(ctx, m.offset)
			}
			r.Start, r.Sequence = nil, m.offset+1
		}
		if !g.pending || len(g.messages) == 0 {
			return engine.Result{}, false, nil
		}
	}
}

// timeOf is the timestamp of an event; 0 if the event is gone.
func (l *log) timeOf(ctx context.Context, offset uint64) (int64, error) {
	var name topic.Name
	ev, ok, err := l.at(ctx, offset, &name)
	if err != nil || !ok {
		return 0, err
	}
	return ev.Timestamp, nil
}

// LastOffsets implements engine.Log.
func (l *log) LastOffsets(ctx context.Context, p topic.Pattern, upTo uint64, limit int) ([]uint64, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil || !s.History {
		return nil, err
	}
	upTo = min(upTo, s.Head)
	if upTo < s.Oldest {
		return nil, nil
	}
	subjects, err := l.subjects(ctx, p)
	if err != nil {
		return nil, err
	}
	var list []uint64
	for some := range slices.Chunk(subjects, newestOf) {
		messages, err := l.newest(ctx, some, upTo)
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			offset, name := m.offset, topic.Name{}
			if offset > upTo {
				ev, _ := m.event(&name)
				if offset, _, err = l.lastAt(ctx, ev.Topic, upTo); err != nil {
					return nil, l.readError(ctx, err)
				}
			}
			if offset < s.Oldest {
				continue
			}
			if len(list) == limit {
				return nil, &engine.TooManyTopicsError{Limit: limit}
			}
			list = append(list, offset)
		}
	}
	slices.Sort(list)
	return list, nil
}

// AfterLast implements engine.Log: it reads stretches of the log, each twice as long as the one behind it.
func (l *log) AfterLast(ctx context.Context, p topic.Pattern, n int, upTo uint64) (uint64, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil || !s.History {
		return s.Head, err
	}
	upTo = min(upTo, s.Head)
	if n <= 0 || upTo < s.Oldest {
		return upTo, nil
	}
	for width, to := uint64(max(n, newestOf)), upTo; ; width *= 2 {
		oldest := l.State().Oldest
		if to < oldest {
			return oldest - 1, nil
		}
		from := max(oldest, to-min(to, width)+1) - 1
		found, err := l.offsets(ctx, p, from, to)
		var gone *engine.PositionGoneError
		switch {
		case errors.As(err, &gone):
			continue // retention has come nearer
		case err != nil:
			return 0, err
		case len(found) >= n:
			return found[len(found)-n] - 1, nil
		}
		n, to = n-len(found), from
	}
}

// offsets are those of the events of a pattern in (after, to], ascending.
func (l *log) offsets(ctx context.Context, p topic.Pattern, after, to uint64) (list []uint64, err error) {
	for after < to {
		page, err := l.read(ctx, engine.ReadRequest{Pattern: p, After: after, To: to, MaxBytes: getBytes})
		if err != nil {
			return nil, err
		}
		for _, ev := range page.Events {
			list = append(list, ev.Offset)
		}
		after = page.Scanned
	}
	return list, nil
}

// BeforeTime implements engine.Log.
func (l *log) BeforeTime(ctx context.Context, t int64) (uint64, error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil || !s.History {
		return s.Head, err
	}
	if s.Oldest > s.Head {
		return s.Head, nil
	}
	if t <= 0 {
		return s.Oldest - 1, nil
	}
	newest, err := l.timeOf(ctx, s.Head)
	if err != nil {
		return 0, err
	}
	if t > newest { // or it is gone meanwhile, and with it all that was there
		return s.Head, nil
	}
	start := time.UnixMilli(t)
	for n := 0; ; n++ {
		g, err := l.get(ctx, getRequest{Start: &start, Batch: 1})
		if err != nil {
			return 0, l.readError(ctx, err)
		}
		if len(g.messages) > 0 {
			return min(max(g.messages[0].offset, s.Oldest)-1, s.Head), nil
		}
		// The replica is behind, since the newest event is at t or later.
		if n >= staleAttempts {
			return 0, apiError("cannot read stream "+l.stream, errStaleAway)
		}
		if err := pause(ctx, n); err != nil {
			return 0, err
		}
	}
}

// Topic implements engine.Log.
func (l *log) Topic(ctx context.Context, n topic.Name) (engine.TopicState, bool, error) {
	list, _, err := l.Topics(ctx, n.Pattern(), "", 1)
	if err != nil || len(list) == 0 {
		return engine.TopicState{}, false, err
	}
	return list[0], true, nil
}

// Topics implements engine.Log.
func (l *log) Topics(ctx context.Context, p topic.Pattern, after string, limit int) (list []engine.TopicState, more bool, err error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil || !s.History {
		return nil, false, err
	}
	subjects, err := l.subjects(ctx, p)
	if err != nil {
		return nil, false, err
	}
	from := 0
	if after != "" {
		from, _ = slices.BinarySearch(subjects, l.e.o.subject(after)+"\x00")
	}
	// One more than is asked for says whether there are more. Some may turn out to be gone.
	for subjects = subjects[from:]; len(subjects) > 0 && len(list) <= limit; {
		some := subjects[:min(len(subjects), newestOf, limit+1-len(list))]
		subjects = subjects[len(some):]
		described, err := l.describe(ctx, some, s)
		if err != nil {
			return nil, false, err
		}
		list = append(list, described...)
	}
	if len(list) > limit {
		return list[:limit], true, nil
	}
	return list, false, nil
}

// describe describes those topics that have events, in byte order.
func (l *log) describe(ctx context.Context, subjects []string, s engine.State) ([]engine.TopicState, error) {
	messages, err := l.newest(ctx, subjects, s.Head)
	if err != nil {
		return nil, err
	}
	list := make([]engine.TopicState, len(messages))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(describeAtOnce)
	for i, m := range messages {
		group.Go(func() (err error) {
			list[i], err = l.describeOne(groupCtx, m)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, l.readError(ctx, err)
	}
	list = slices.DeleteFunc(list, func(t engine.TopicState) bool { return t.Newest == 0 })
	slices.SortFunc(list, func(a, b engine.TopicState) int { return strings.Compare(a.Topic.String(), b.Topic.String()) })
	return list, nil
}

// describeOne describes the topic of its newest message. Newest 0: it is gone.
func (l *log) describeOne(ctx context.Context, m message) (t engine.TopicState, err error) {
	ev, ok := m.event(&t.Topic)
	if !ok {
		return engine.TopicState{}, nil
	}
	if err := l.await(ctx, ev.Offset); err != nil { // nothing above head is ever told
		return engine.TopicState{}, err
	}
	oldest, ok, err := l.ask(ctx, getRequest{Sequence: l.State().Oldest, Next: l.e.o.subject(t.Topic.String())})
	if err != nil || !ok || ev.Offset < oldest.offset {
		return engine.TopicState{}, err
	}
	t.Oldest, t.Newest, t.Last = oldest.offset, ev.Offset, ev
	return t, nil
}

// Trim implements engine.Log.
func (l *log) Trim(ctx context.Context, upTo uint64) (oldest uint64, err error) {
	l.gate.RLock()
	defer l.gate.RUnlock()
	s, err := l.view(ctx)
	if err != nil {
		return 0, err
	}
	if !s.History {
		return 0, engine.ErrNoHistory
	}
	if err := l.e.enter(); err != nil {
		return 0, err
	}
	defer l.e.appends.Done()
	if upTo = min(upTo, s.Head); upTo >= s.Oldest {
		request := struct {
			Sequence uint64 `json:"seq"` // the first that stays
		}{upTo + 1}
		var answer struct {
			Error *jetstream.APIError `json:"error"`
		}
		err := l.e.api(ctx, setupWait, "STREAM.PURGE."+l.stream, request, &answer)
		if err == nil && answer.Error != nil {
			err = answer.Error
		}
		if err != nil {
			return 0, l.readError(ctx, err)
		}
	}
	i, err := l.refresh(ctx)
	if err != nil {
		return 0, err
	}
	return min(i.State.oldest(), l.State().Head+1), nil
}
