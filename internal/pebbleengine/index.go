package pebbleengine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/runnelhq/runnel/internal/topic"
)

// eachOffset calls f with the topic's offsets in from..to, ascending, until f returns false.
func (l *log) eachOffset(db *pebble.DB, n topic.Name, from, to uint64, f func(uint64) (bool, error)) error {
	it, err := l.indexIter(db, from, to)
	if err != nil {
		return err
	}
	defer it.Close()
	for b := bucket(from); b <= bucket(to); b++ {
		key := indexKey(l.id, n, max(from, b<<bucketBits))
		topicPart := key[:len(key)-8]
		for ok := it.SeekGE(key); ok && isOffsetOf(it.Key(), topicPart); ok = it.Next() {
			offset := keyOffset(it.Key())
			if offset > to {
				return nil
			}
			if more, err := f(offset); err != nil || !more {
				return err
			}
		}
		if err := it.Error(); err != nil {
			return err
		}
	}
	return nil
}

// eachOffsetDown is eachOffset, descending.
func (l *log) eachOffsetDown(db *pebble.DB, n topic.Name, from, to uint64, f func(uint64) bool) error {
	it, err := l.indexIter(db, from, to)
	if err != nil {
		return err
	}
	defer it.Close()
	for b := bucket(to); ; b-- {
		key := indexKey(l.id, n, min(to, (b+1)<<bucketBits-1))
		topicPart := key[:len(key)-8]
		for ok := it.SeekLT(after(key)); ok && isOffsetOf(it.Key(), topicPart); ok = it.Prev() {
			if offset := keyOffset(it.Key()); offset < from || !f(offset) {
				return nil
			}
		}
		if err := it.Error(); err != nil || b <= bucket(from) {
			return err
		}
	}
}

// isOffsetOf reports whether k is an index key that begins with topicPart: bucket and topic. Topics hold no zero byte, so
// no other topic's key does.
func isOffsetOf(k, topicPart []byte) bool {
	return len(k) == len(topicPart)+8 && bytes.HasPrefix(k, topicPart)
}

func (l *log) indexIter(db *pebble.DB, from, to uint64) (*pebble.Iterator, error) {
	return db.NewIter(&pebble.IterOptions{LowerBound: bucketKey(l.id, bucket(from)), UpperBound: bucketKey(l.id, bucket(to)+1)})
}

// getOffset reads a key that holds an offset; 0 if there is none.
func getOffset(db *pebble.DB, key []byte) (uint64, error) {
	v, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, fmt.Errorf("%w: an offset", errChecksum)
	}
	return binary.BigEndian.Uint64(v), nil
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// stopped is a scan's error, if it is one.
func stopped(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// scan calls f with every key from lower to below upper.
func scan(db *pebble.DB, lower, upper []byte, f func(k, v []byte) error) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(it.Key(), v); err != nil {
			return err
		}
	}
	return it.Error()
}
