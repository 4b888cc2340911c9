package pebbleengine

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/runnelhq/runnel/internal/topic"
)

// The schema. All integers are big-endian; ns is a namespace's number.
//
//	m n NAME                             namespace number (u32)
//	m e ns                               epochs: (epoch u64, first offset u64)...
//	m t ns                               trim point (see trim)
//	e ns OFFSET                          event (see value)
//	t ns OFFSET>>16 TOPIC 0 OFFSET       index: one key per event, in buckets, so that whole buckets are deleted at once
//	n ns TOPIC                           newest offset of the topic (u64)
//	d ns OFFSET                          event ids of the commit whose first id belongs to the event at OFFSET:
//	                                     time (u64), (hash [16], offset u64)...
//
// A change of it changes the format number in the directory's marker.
const (
	kindMeta  = 'm'
	kindLog   = 'e'
	kindIndex = 't'
	kindTopic = 'n'
	kindDedup = 'd'

	metaEpochs = 'e'
	metaTrim   = 't'

	bucketBits = 16
	logKeySize = 1 + 4 + 8
)

var keyNamespaces = []byte{kindMeta, 'n'}

func namespaceKey(name string) []byte { return append([]byte{kindMeta, 'n'}, name...) }

func metaKey(what byte, ns uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kindMeta, what}, ns)
}

func prefix(kind byte, ns uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 32), kind), ns)
}

func offsetKey(kind byte, ns uint32, offset uint64) []byte {
	return appendOffsetKey(make([]byte, 0, logKeySize), kind, ns, offset)
}

func appendOffsetKey(k []byte, kind byte, ns uint32, offset uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(append(k, kind), ns), offset)
}

func topicKey(ns uint32, name string) []byte { return append(prefix(kindTopic, ns), name...) }

func bucketKey(ns uint32, bucket uint64) []byte {
	return binary.BigEndian.AppendUint64(prefix(kindIndex, ns), bucket)
}

func indexKeySize(name topic.Name) int { return logKeySize + len(name.String()) + 1 + 8 }

func appendIndexKey(k []byte, ns uint32, name topic.Name, offset uint64) []byte {
	k = append(appendOffsetKey(k, kindIndex, ns, bucket(offset)), name.String()...)
	return binary.BigEndian.AppendUint64(append(k, 0), offset)
}

func indexKey(ns uint32, name topic.Name, offset uint64) []byte {
	return appendIndexKey(make([]byte, 0, indexKeySize(name)), ns, name, offset)
}

func bucket(offset uint64) uint64 { return offset >> bucketBits }

// keyOffset reads the offset that ends a log, index or dedup key.
func keyOffset(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// indexTopic is the topic in an index key.
func indexTopic(k []byte) []byte { return k[logKeySize : len(k)-8-1] }

// after is the first key behind all keys that begin with k.
func after(k []byte) []byte {
	end := append([]byte(nil), k...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// value is a stored event: a checksum of the rest, the version of this encoding, the bytes of all values of the namespace up to
// and including this one (so that the size of any stretch is a subtraction), the timestamp, and the body.
type value struct {
	total uint64
	time  int64
	body  []byte
}

const (
	valueHeader  = 4 + 1 + 8 + 8
	valueVersion = 1
)

var (
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	errChecksum = errors.New("a stored record is damaged")
)

// putValue fills b, of valueHeader+len(body) bytes.
func putValue(b []byte, v value) {
	b[4] = valueVersion
	binary.BigEndian.PutUint64(b[5:], v.total)
	binary.BigEndian.PutUint64(b[13:], uint64(v.time))
	copy(b[valueHeader:], v.body)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
}

// getValue reads b; body aliases it.
func getValue(b []byte) (value, error) {
	if len(b) < valueHeader || b[4] != valueVersion || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return value{}, errChecksum
	}
	return value{
		total: binary.BigEndian.Uint64(b[5:]),
		time:  int64(binary.BigEndian.Uint64(b[13:])),
		body:  b[valueHeader:],
	}, nil
}
