package pebbleengine

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnelhq/runnel/internal/topic"
)

var drawTopic = rapid.Custom(func(t *rapid.T) topic.Name {
	return topic.Stored(rapid.StringMatching(`[a-z+]{1,3}(\.[A-Za-z0-9_\-:@=+]{1,4}){0,3}`).Draw(t, "topic"))
})

func TestKeysRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns, offset, name := rapid.Uint32().Draw(t, "ns"), rapid.Uint64().Draw(t, "offset"), drawTopic.Draw(t, "name")
		if k := offsetKey(kindLog, ns, offset); keyOffset(k) != offset || len(k) != logKeySize || !bytes.HasPrefix(k, prefix(kindLog, ns)) {
			t.Fatalf("log key %x", k)
		}
		k := indexKey(ns, name, offset)
		if keyOffset(k) != offset || string(indexTopic(k)) != name.String() || len(k) != indexKeySize(name) {
			t.Fatalf("index key %x", k)
		}
		if !bytes.HasPrefix(k, bucketKey(ns, bucket(offset))) {
			t.Fatalf("index key %x is not in its bucket", k)
		}
	})
}

// Keys sort as what they stand for: by offset; in the index by bucket, topic, offset.
func TestKeyOrder(t *testing.T) {
	type event struct {
		name   topic.Name
		offset uint64
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) event {
			return event{drawTopic.Draw(t, label), rapid.Uint64Range(0, 1<<18).Draw(t, label)}
		}
		a, b := draw("a"), draw("b")
		if got := bytes.Compare(offsetKey(kindLog, 7, a.offset), offsetKey(kindLog, 7, b.offset)); got != compare(a.offset, b.offset) {
			t.Fatalf("log keys of %d and %d compare as %d", a.offset, b.offset, got)
		}
		want := compare(bucket(a.offset), bucket(b.offset))
		if want == 0 {
			want = bytes.Compare([]byte(a.name.String()), []byte(b.name.String()))
		}
		if want == 0 {
			want = compare(a.offset, b.offset)
		}
		if got := bytes.Compare(indexKey(7, a.name, a.offset), indexKey(7, b.name, b.offset)); got != want {
			t.Fatalf("index keys of %v and %v compare as %d, want %d", a, b, got, want)
		}
	})
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestAfter(t *testing.T) {
	for _, c := range []struct{ k, want []byte }{
		{[]byte{1, 2}, []byte{1, 3}}, {[]byte{1, 0xff}, []byte{2}}, {[]byte{0xff, 0xff}, nil},
	} {
		if got := after(c.k); !bytes.Equal(got, c.want) {
			t.Errorf("after(%x) = %x, want %x", c.k, got, c.want)
		}
	}
}

func TestValuesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := value{total: rapid.Uint64().Draw(t, "total"), time: rapid.Int64().Draw(t, "time"), body: rapid.SliceOf(rapid.Byte()).Draw(t, "body")}
		b := make([]byte, valueHeader+len(v.body))
		putValue(b, v)
		got, err := getValue(b)
		if err != nil || got.total != v.total || got.time != v.time || !bytes.Equal(got.body, v.body) {
			t.Fatalf("%+v, %v; want %+v", got, err, v)
		}
		damaged := slices.Clone(b)
		damaged[rapid.IntRange(0, len(b)-1).Draw(t, "place")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		if _, err := getValue(damaged); err == nil {
			t.Fatal("a flipped bit goes unnoticed")
		}
	})
}

func FuzzValue(f *testing.F) {
	b := make([]byte, valueHeader+3)
	putValue(b, value{total: 1, time: 2, body: []byte("abc")})
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := getValue(b)
		if err != nil {
			return
		}
		again := make([]byte, valueHeader+len(v.body))
		if putValue(again, v); !bytes.Equal(again, b) {
			t.Errorf("%x reads as %+v, which is stored as %x", b, v, again)
		}
	})
}
