package pebbleengine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// eachTopic calls f with the topics that match p and may have retained events, and their newest offset, in byte order behind
// the name from, until f returns false. The name aliases the store's buffer.
func (l *log) eachTopic(ctx context.Context, db *pebble.DB, p topic.Pattern, from string, f func(n topic.Name, newest uint64) (bool, error)) error {
	if n, ok := p.Exact(); ok {
		newest, err := getOffset(db, topicKey(l.id, n.String()))
		if err == nil && newest != 0 && from < n.String() {
			_, err = f(n, newest)
		}
		return err
	}
	lower := topicKey(l.id, p.Prefix())
	upper := after(lower)
	if behind := append(topicKey(l.id, from), 0); from != "" && bytes.Compare(behind, lower) > 0 {
		lower = behind
	}
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	return scan(db, lower, upper, func(k, v []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := alias(k[1+4:])
		if p != (topic.Pattern{}) && !p.Match(n) {
			return nil
		}
		if len(v) != 8 {
			return fmt.Errorf("%w: newest offset of a topic", errChecksum)
		}
		more, err := f(n, binary.BigEndian.Uint64(v))
		if err == nil && !more {
			return errStop
		}
		return err
	})
}

// newestIn is the topic's newest offset in from..to, given the newest of all; 0 if there is none.
func (l *log) newestIn(db *pebble.DB, n topic.Name, newest, from, to uint64) (uint64, error) {
	switch {
	case newest < from || to < from:
		return 0, nil
	case newest <= to:
		return newest, nil
	}
	var found uint64
	err := l.eachOffsetDown(db, n, from, to, func(offset uint64) bool {
		found = offset
		return false
	})
	return found, err
}

// LastOffsets implements engine.Log.
func (l *log) LastOffsets(ctx context.Context, p topic.Pattern, upTo uint64, limit int) ([]uint64, error) {
	db, s, err := l.view(ctx)
	if err != nil || !s.History {
		return nil, err
	}
	defer l.leave()
	upTo = min(upTo, s.Head)
	var list []uint64
	err = l.eachTopic(ctx, db, p, "", func(n topic.Name, newest uint64) (bool, error) {
		offset, err := l.newestIn(db, n, newest, s.Oldest, upTo)
		if err != nil || offset == 0 {
			return true, err
		}
		if len(list) == limit {
			return false, &engine.TooManyTopicsError{Limit: limit}
		}
		list = append(list, offset)
		return true, nil
	})
	if err := stopped(err); err != nil {
		return nil, readError(err)
	}
	slices.Sort(list)
	return list, nil
}

// AfterLast implements engine.Log. For a wildcard it walks the log backwards.
func (l *log) AfterLast(ctx context.Context, p topic.Pattern, n int, upTo uint64) (uint64, error) {
	db, s, err := l.view(ctx)
	if err != nil || !s.History {
		return s.Head, err
	}
	defer l.leave()
	upTo = min(upTo, s.Head)
	if n <= 0 || upTo < s.Oldest {
		return upTo, nil
	}
	answer := s.Oldest - 1
	more := func(offset uint64) bool {
		if n--; n == 0 {
			answer = offset - 1
		}
		return n > 0
	}
	if name, ok := p.Exact(); ok {
		err = l.eachOffsetDown(db, name, s.Oldest, upTo, more)
	} else {
		err = l.eachMatchDown(ctx, db, p, s.Oldest, upTo, more)
	}
	return answer, readError(err)
}

// eachMatchDown calls f with the offsets in from..to of events that match p, descending, until f returns false.
func (l *log) eachMatchDown(ctx context.Context, db *pebble.DB, p topic.Pattern, from, to uint64, f func(uint64) bool) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: offsetKey(kindLog, l.id, from), UpperBound: offsetKey(kindLog, l.id, to+1)})
	if err != nil {
		return err
	}
	defer it.Close()
	filter := newPage(engine.ReadRequest{Pattern: p})
	for ok := it.Last(); ok; ok = it.Prev() {
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if name := storedTopic(raw); name != nil && filter.matches(name) && !f(keyOffset(it.Key())) {
			return nil
		}
	}
	return it.Error()
}

// Topic implements engine.Log.
func (l *log) Topic(ctx context.Context, n topic.Name) (engine.TopicState, bool, error) {
	db, s, err := l.view(ctx)
	if err != nil || !s.History {
		return engine.TopicState{}, false, err
	}
	defer l.leave()
	newest, err := getOffset(db, topicKey(l.id, n.String()))
	if err != nil {
		return engine.TopicState{}, false, readError(err)
	}
	t, ok, err := l.describe(db, n, newest, s)
	return t, ok, readError(err)
}

// Topics implements engine.Log.
func (l *log) Topics(ctx context.Context, p topic.Pattern, from string, limit int) (list []engine.TopicState, more bool, err error) {
	db, s, err := l.view(ctx)
	if err != nil || !s.History {
		return nil, false, err
	}
	defer l.leave()
	err = l.eachTopic(ctx, db, p, from, func(n topic.Name, newest uint64) (bool, error) {
		if newest < s.Oldest {
			return true, nil
		}
		t, ok, err := l.describe(db, topic.Stored(string([]byte(n.String()))), newest, s)
		if err != nil || !ok {
			return true, err
		}
		if more = len(list) == limit; more {
			return false, nil
		}
		list = append(list, t)
		return true, nil
	})
	return list, more, readError(stopped(err))
}

// describe fills a TopicState, given the newest offset the topic table knows. If the newest event is damaged, Last has no
// bytes.
func (l *log) describe(db *pebble.DB, n topic.Name, newest uint64, s engine.State) (t engine.TopicState, ok bool, err error) {
	t.Topic = n
	if t.Newest, err = l.newestIn(db, n, newest, s.Oldest, s.Head); err != nil || t.Newest == 0 {
		return t, false, err
	}
	err = l.eachOffset(db, n, s.Oldest, t.Newest, func(offset uint64) (bool, error) {
		t.Oldest = offset
		return false, nil
	})
	if err != nil {
		return t, false, err
	}
	p := newPage(engine.ReadRequest{})
	if _, err := l.readOne(db, p, t.Newest, true); err != nil {
		return t, false, err
	}
	if t.Newest < l.State().Oldest { // trimmed meanwhile
		return t, false, nil
	}
	t.Last = engine.Event{Offset: t.Newest, Topic: n}
	if len(p.Events) == 1 {
		t.Last = p.Events[0]
	}
	return t, true, nil
}
