package pebbleengine

import (
	"context"
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// eachTopic calls f with the topics that match p and may have retained events, and their newest offset, in byte order behind
// the name from, until f returns false. The name aliases the store's buffer.
func (l *log) eachTopic(ctx context.Context, p topic.Pattern, from string, f func(n topic.Name, newest uint64) (bool, error)) error {
	lower := topicKey(l.id, p.Prefix())
	upper := after(lower)
	if from != "" {
		if behind := append(topicKey(l.id, from), 0); slices.Compare(behind, lower) > 0 {
			lower = behind
		}
	}
	it, err := l.st.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := it.Key()[1+4:]
		n := topic.Stored(unsafe.String(unsafe.SliceData(name), len(name)))
		if !p.Match(n) {
			continue
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if len(v) != 8 {
			return errChecksum
		}
		if more, err := f(n, binary.BigEndian.Uint64(v)); err != nil || !more {
			return err
		}
	}
	return it.Error()
}

// newestAtOrBelow is the topic's newest offset in from..to, given the newest of all; 0 if there is none.
func (l *log) newestAtOrBelow(n topic.Name, newest, from, to uint64) (uint64, error) {
	if newest <= to {
		if newest < from {
			return 0, nil
		}
		return newest, nil
	}
	var found uint64
	err := l.eachOffsetDown(n, from, to, func(offset uint64) bool {
		found = offset
		return false
	})
	return found, err
}

// LastOffsets implements engine.Log.
func (l *log) LastOffsets(ctx context.Context, p topic.Pattern, upTo uint64, limit int) ([]uint64, error) {
	s := l.State()
	if !s.History {
		return nil, nil
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	upTo = min(upTo, s.Head)
	var list []uint64
	err := l.eachTopic(ctx, p, "", func(n topic.Name, newest uint64) (bool, error) {
		offset, err := l.newestAtOrBelow(n, newest, s.Oldest, upTo)
		if err != nil || offset == 0 {
			return err == nil, err
		}
		if len(list) == limit {
			return false, &engine.TooManyTopicsError{Limit: limit}
		}
		list = append(list, offset)
		return true, nil
	})
	if err != nil {
		return nil, readError(err)
	}
	slices.Sort(list)
	return list, nil
}

// AfterLast implements engine.Log.
func (l *log) AfterLast(ctx context.Context, p topic.Pattern, n int, upTo uint64) (uint64, error) {
	s := l.State()
	if !s.History {
		return s.Head, nil
	}
	upTo = min(upTo, s.Head)
	if n <= 0 || upTo < s.Oldest {
		return upTo, nil
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	answer := s.Oldest - 1
	count := func(offset uint64) bool {
		if n--; n == 0 {
			answer = offset - 1
		}
		return n > 0
	}
	if name, ok := p.Exact(); ok {
		err := l.eachOffsetDown(name, s.Oldest, upTo, count)
		return answer, readError(err)
	}
	it, err := l.st.db.NewIter(&pebble.IterOptions{
		LowerBound: offsetKey(kindLog, l.id, s.Oldest), UpperBound: offsetKey(kindLog, l.id, upTo+1),
	})
	if err != nil {
		return 0, readError(err)
	}
	defer it.Close()
	one := newPage(engine.ReadRequest{Pattern: p})
	for ok := it.Last(); ok; ok = it.Prev() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return 0, readError(err)
		}
		one.Events, one.buf = one.Events[:0], one.buf[:0]
		if one.add(keyOffset(it.Key()), raw); len(one.Events) == 1 && !count(one.Events[0].Offset) {
			break
		}
	}
	return answer, readError(it.Error())
}

// Topic implements engine.Log.
func (l *log) Topic(ctx context.Context, n topic.Name) (engine.TopicState, bool, error) {
	s := l.State()
	if !s.History {
		return engine.TopicState{}, false, ctx.Err()
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	newest, err := getOffset(l.st.db, topicKey(l.id, n.String()))
	if err != nil {
		return engine.TopicState{}, false, readError(err)
	}
	t, ok, err := l.describe(n, newest, s)
	return t, ok, readError(err)
}

// describe fills a TopicState, given the newest offset the topic table knows.
func (l *log) describe(n topic.Name, newest uint64, s engine.State) (engine.TopicState, bool, error) {
	t := engine.TopicState{Topic: n}
	var err error
	if t.Newest, err = l.newestAtOrBelow(n, newest, s.Oldest, s.Head); err != nil || t.Newest == 0 {
		return t, false, err
	}
	err = l.eachOffset(n, s.Oldest, t.Newest, func(offset uint64) (bool, error) {
		t.Oldest = offset
		return false, nil
	})
	if err != nil {
		return t, false, err
	}
	raw, closer, err := l.st.db.Get(offsetKey(kindLog, l.id, t.Newest))
	if err != nil {
		return t, false, err
	}
	defer closer.Close()
	p := newPage(engine.ReadRequest{})
	p.add(t.Newest, raw)
	if len(p.Events) == 0 {
		return t, false, errChecksum
	}
	t.Last = p.Events[0]
	return t, true, nil
}

// Topics implements engine.Log.
func (l *log) Topics(ctx context.Context, p topic.Pattern, from string, limit int) (list []engine.TopicState, more bool, err error) {
	s := l.State()
	if !s.History {
		return nil, false, ctx.Err()
	}
	l.st.mu.RLock()
	defer l.st.mu.RUnlock()
	err = l.eachTopic(ctx, p, from, func(n topic.Name, newest uint64) (bool, error) {
		if newest < s.Oldest {
			return true, nil
		}
		if len(list) == limit {
			more = true
			return false, nil
		}
		t, ok, err := l.describe(topic.Stored(string([]byte(n.String()))), newest, s)
		if ok {
			list = append(list, t)
		}
		return err == nil, err
	})
	return list, more, readError(err)
}
