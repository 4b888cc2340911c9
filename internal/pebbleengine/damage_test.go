package pebbleengine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/runnelhq/runnel/internal/engine"
)

// flip changes one byte of a stored event, behind the back of Pebble's own checksums.
func flip(t *testing.T, e *Engine, offset uint64, place int) {
	t.Helper()
	changeStored(t, e, func(db *pebble.DB, b *pebble.Batch) error {
		key := offsetKey(kindLog, 1, offset)
		v, closer, err := db.Get(key)
		if err != nil {
			return err
		}
		v = slices.Clone(v)
		v[place%len(v)] ^= 0x40
		return errors.Join(b.Set(key, v, nil), closer.Close())
	})
}

func changeStored(t *testing.T, e *Engine, change func(*pebble.DB, *pebble.Batch) error) {
	t.Helper()
	db, err := e.disk.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer e.disk.release()
	b := db.NewBatch()
	if err := errors.Join(change(db, b), e.disk.apply(b, durable), b.Close()); err != nil {
		t.Fatal(err)
	}
}

// Whichever byte of a stored event changes, it is reported in place of the event, by every way of reading.
func TestDamagedEvents(t *testing.T) {
	for place := range valueHeader + 10 {
		e := open(t, vfs.NewMem(), "data", window(engine.HistoryDisk))
		l := logOf(t, e, "a")
		for i := 1; i <= 9; i++ {
			add(t, l, entry(t, "a.b", "", fmt.Sprint(i)))
		}
		for _, offset := range []uint64{3, 4, 7} {
			flip(t, e, offset, place)
		}
		want := []engine.Range{{From: 3, To: 4}, {From: 7, To: 7}}
		for _, p := range []string{"a.>", "a.b"} {
			page, err := l.Read(t.Context(), engine.ReadRequest{Pattern: pattern(t, p)})
			if err != nil || !slices.Equal(page.Damaged, want) || len(page.Events) != 6 || page.Scanned != 9 {
				t.Fatalf("byte %d, %s: %d events, damaged %v, scanned %d, %v", place, p, len(page.Events), page.Damaged, page.Scanned, err)
			}
		}
		page, err := l.ReadAt(t.Context(), []uint64{2, 3, 9}, 0)
		if err != nil || len(page.Events) != 2 || !slices.Equal(page.Damaged, []engine.Range{{From: 3, To: 3}}) {
			t.Fatalf("byte %d, ReadAt: %+v, %v", place, page, err)
		}
		if o, err := l.BeforeTime(t.Context(), 0); err != nil || o != 0 {
			t.Fatalf("byte %d, BeforeTime: %d, %v", place, o, err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Events that have vanished are damage too, also at the end of what is read.
func TestMissingEvents(t *testing.T) {
	e := open(t, vfs.NewMem(), "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	for i := range 9 {
		add(t, l, entry(t, "a.b", "", fmt.Sprint(i)))
	}
	changeStored(t, e, func(_ *pebble.DB, b *pebble.Batch) error {
		return errors.Join(b.DeleteRange(offsetKey(kindLog, 1, 2), offsetKey(kindLog, 1, 4), nil), b.Delete(offsetKey(kindLog, 1, 9), nil))
	})
	want := []engine.Range{{From: 2, To: 3}, {From: 9, To: 9}}
	for _, p := range []string{"a.>", "a.b"} {
		page, err := l.Read(t.Context(), engine.ReadRequest{Pattern: pattern(t, p)})
		if err != nil || !slices.Equal(page.Damaged, want) || len(page.Events) != 6 || page.Scanned != 9 {
			t.Errorf("%s: %d events, damaged %v, scanned %d, %v", p, len(page.Events), page.Damaged, page.Scanned, err)
		}
	}
}

// The newest event carries what the next one is computed from; where it is damaged the log goes on all the same.
func TestDamagedNewest(t *testing.T) {
	fs := vfs.NewMem()
	cfg := engine.Config{History: engine.HistoryDisk, MaxBytes: 1 << 20, MaxAge: time.Hour}
	e := open(t, fs, "data", cfg)
	l := logOf(t, e, "a")
	res := add(t, l, entry(t, "a.b", "", "1"), entry(t, "a.b", "", "2"), entry(t, "a.c", "", "3"))
	flip(t, e, 3, valueHeader)
	if s, ok, err := l.Topic(t.Context(), entry(t, "a.c", "", "").Topic); err != nil || !ok || s.Newest != 3 || s.Last.Wire != nil {
		t.Errorf("a topic whose newest event is damaged: %+v, %v, %v", s, ok, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	l = logOf(t, open(t, fs, "data", cfg), "a")
	if s := l.State(); s.Head != 3 || s.Oldest != 1 {
		t.Errorf("%+v", s)
	}
	if next := add(t, l, entry(t, "a.b", "", "4"))[0]; next.Offset != 4 || next.Timestamp < res[2].Timestamp {
		t.Errorf("%+v after %+v", next, res[2])
	}
}

// Bits rot in the tables on disk: no wrong event comes out, what cannot be read is reported, and the rest can be read.
func TestRottenTables(t *testing.T) {
	dir := t.TempDir()
	cfg := window(engine.HistoryDisk)
	e := open(t, nil, dir, cfg)
	l := logOf(t, e, "a")
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[uint64]string{}
	for i := range 40 {
		var batch []engine.Entry
		for j := range 100 {
			payload := make([]byte, 100)
			for k := range payload {
				payload[k] = byte(rng.Uint32())
			}
			want[uint64(i*100+j+1)] = string(payload)
			batch = append(batch, entry(t, "a.b", "", string(payload)))
		}
		add(t, l, batch...)
	}
	db, err := e.disk.acquire()
	if err != nil {
		t.Fatal(err)
	}
	err = db.Flush()
	e.disk.release()
	if err := errors.Join(err, e.Close()); err != nil {
		t.Fatal(err)
	}
	rot(t, filepath.Join(dir, storeName), ".sst")

	l = logOf(t, open(t, nil, dir, cfg), "a")
	lost, read := uint64(0), 0
	for after := uint64(0); after < 4000; {
		page, err := l.Read(t.Context(), engine.ReadRequest{After: after})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range page.Events {
			if !strings.Contains(string(ev.Wire), want[ev.Offset]) {
				t.Fatalf("event %d has wrong bytes", ev.Offset)
			}
			read++
		}
		for _, d := range page.Damaged {
			lost += d.To - d.From + 1
		}
		after = page.Scanned
	}
	if read+int(lost) != 4000 || lost == 0 || lost > 500 {
		t.Errorf("%d events read, %d reported as damaged, of 4000", read, lost)
	}
}

// rot changes a byte in the middle of the largest file with the given suffix.
func rot(t *testing.T, dir, suffix string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s files: %v", suffix, err)
	}
	var largest []byte
	var path string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > len(largest) {
			largest, path = b, f
		}
	}
	largest[len(largest)/2] ^= 1
	if err := os.WriteFile(path, largest, 0o600); err != nil {
		t.Fatal(err)
	}
}
