package pebbleengine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

var discard = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// window is a namespace configuration with deduplication as the server's default has it.
func window(h engine.History) engine.Config {
	return engine.Config{History: h, DedupWindow: 2 * time.Minute, DedupIDs: 1 << 20}
}

func namespaces(cfg engine.Config) func(string) (engine.Config, bool) {
	return func(name string) (engine.Config, bool) { return cfg, name != "unknown" }
}

func open(t testing.TB, fs vfs.FS, dir string, cfg engine.Config) *Engine {
	t.Helper()
	e, err := Open(Options{Dir: dir, FS: fs, Namespace: namespaces(cfg), Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Log("close:", err)
		}
	})
	return e
}

func logOf(t testing.TB, e *Engine, name string) engine.Log {
	t.Helper()
	l, err := e.Log(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func entry(t testing.TB, name, id, payload string) engine.Entry {
	n, err := topic.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	r := &runnelv1.PublishRequest{Payload: []byte(payload)}
	return engine.Entry{Topic: n, ID: id, Dedup: id != "", Body: wire.AppendBody(nil, n, id, "tester", r)}
}

func add(t testing.TB, l engine.Log, entries ...engine.Entry) []engine.Result {
	t.Helper()
	res, err := l.Append(t.Context(), entries, engine.AppendEach)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func pattern(t testing.TB, s string) topic.Pattern {
	p, err := topic.ParsePattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// readAll reads what matches p after an offset, page by page, and decodes it.
func readAll(t testing.TB, l engine.Log, p topic.Pattern, after uint64, pageBytes int) []*runnelv1.Event {
	t.Helper()
	var all []*runnelv1.Event
	for {
		page, err := l.Read(t.Context(), engine.ReadRequest{Pattern: p, After: after, MaxBytes: pageBytes})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range page.Events {
			m := new(runnelv1.Event)
			if err := proto.Unmarshal(ev.Wire, m); err != nil {
				t.Fatal(err)
			}
			if m.GetOffset() != ev.Offset || m.GetTopic() != ev.Topic.String() || m.GetTimestamp() != ev.Timestamp {
				t.Fatalf("event %v does not carry its own offset, topic and timestamp: %v", ev, m)
			}
			all = append(all, m)
		}
		if page.Scanned == after {
			return all
		}
		after = page.Scanned
	}
}

var histories = []engine.History{engine.HistoryDisk, engine.HistoryOS, engine.HistoryMemory}

func TestAppendAndRead(t *testing.T) {
	for _, h := range histories {
		t.Run(string(h), func(t *testing.T) {
			l := logOf(t, open(t, nil, t.TempDir(), window(h)), "quotes")
			for i := range 1000 {
				res := add(t, l, entry(t, fmt.Sprintf("quotes.s%d", i%7), "", fmt.Sprint(i)))
				if res[0].Offset != uint64(i+1) {
					t.Fatalf("event %d got offset %d", i, res[0].Offset)
				}
			}
			for _, c := range []struct {
				pattern string
				want    int
			}{{"quotes.>", 1000}, {"quotes.*", 1000}, {"quotes.s3", 143}, {"quotes.none", 0}, {"quotes.*.x", 0}, {"quotes", 0}} {
				got := readAll(t, l, pattern(t, c.pattern), 0, 300)
				if len(got) != c.want {
					t.Errorf("%s: %d events, want %d", c.pattern, len(got), c.want)
				}
				for i := 1; i < len(got); i++ {
					if got[i].GetOffset() <= got[i-1].GetOffset() || got[i].GetTimestamp() < got[i-1].GetTimestamp() {
						t.Fatalf("%s: out of order: %v after %v", c.pattern, got[i], got[i-1])
					}
				}
			}
			last, err := l.LastOffsets(t.Context(), pattern(t, "quotes.>"), 997, 100)
			if err != nil || fmt.Sprint(last) != "[991 992 993 994 995 996 997]" {
				t.Errorf("LastOffsets at 997: %v, %v", last, err)
			}
			if o, err := l.AfterLast(t.Context(), pattern(t, "quotes.s3"), 2, 1000); err != nil || o != 990 {
				t.Errorf("AfterLast: %d, %v", o, err)
			}
		})
	}
}

func TestIdempotence(t *testing.T) {
	fs := vfs.NewMem()
	cfg := window(engine.HistoryDisk)
	cfg.MaxEvents = 3
	e := open(t, fs, "data", cfg)
	l := logOf(t, e, "a")
	first := add(t, l, entry(t, "a.b", "id1", "x"), entry(t, "a.b", "id1", "y"), entry(t, "a.c", "id1", "z"))
	if first[0].Duplicate || !first[1].Duplicate || first[1].Offset != 1 || first[2].Offset != 2 {
		t.Fatalf("same id in one call: %+v", first)
	}
	for i := range 10 { // trims the first away
		add(t, l, entry(t, "a.d", fmt.Sprint("n", i), ""))
	}
	check := func(l engine.Log, when string) {
		en := entry(t, "a.b", "id1", "again")
		en.Conditional, en.Expected = true, 77 // no longer holds: the retry gets the first result all the same
		if r := add(t, l, en); !r[0].Duplicate || r[0].Offset != 1 || r[0].Timestamp != first[0].Timestamp || r[0].Err != nil {
			t.Errorf("%s: %+v", when, r)
		}
	}
	check(l, "after trimming")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	l = logOf(t, open(t, fs, "data", cfg), "a")
	check(l, "after a restart")
	if s := l.State(); s.Oldest != 10 || s.Head != 12 {
		t.Errorf("state after restart: %+v", s)
	}
}

func TestConditionalAndOrdered(t *testing.T) {
	l := logOf(t, open(t, vfs.NewMem(), "data", window(engine.HistoryDisk)), "a")
	cond := func(name string, expected uint64) engine.Entry {
		en := entry(t, name, "", "")
		en.Conditional, en.Expected = true, expected
		return en
	}
	res := add(t, l, cond("a.x", 0), cond("a.x", 1), cond("a.x", 1), cond("a.y", 0))
	var conflict *engine.ConflictError
	if res[0].Offset != 1 || res[1].Offset != 2 || !errors.As(res[2].Err, &conflict) || conflict.Current != 2 || res[3].Offset != 3 {
		t.Fatalf("%+v", res)
	}
	res, err := l.Append(t.Context(), []engine.Entry{cond("a.x", 2), cond("a.x", 9), entry(t, "a.x", "", "")}, engine.AppendOrdered)
	if err != nil || res[0].Offset != 4 || res[1].Err == nil || !errors.Is(res[2].Err, engine.ErrSkipped) {
		t.Fatalf("%+v, %v", res, err)
	}
	if s := l.State(); s.Head != 4 {
		t.Errorf("head %d, want 4", s.Head)
	}
}

func TestEpochs(t *testing.T) {
	fs := vfs.NewCrashableMem()
	cfg := window(engine.HistoryOS)
	e := open(t, fs, "data", cfg)
	l := logOf(t, e, "a")
	add(t, l, entry(t, "a.b", "", "1"), entry(t, "a.b", "", "2"))
	first := l.State().Epoch
	if err := e.Close(); err != nil { // what is written so far is safe
		t.Fatal(err)
	}
	e = open(t, fs, "data", cfg)
	l = logOf(t, e, "a")
	second := l.State().Epoch
	add(t, l, entry(t, "a.b", "", "3"), entry(t, "a.b", "", "4"))
	// Power fails: what was only written to the operating system is lost.
	l = logOf(t, open(t, fs.CrashClone(vfs.CrashCloneCfg{}), "data", cfg), "a")
	third := l.State()
	if third.Head != 2 {
		t.Fatalf("head after power loss: %d", third.Head)
	}
	add(t, l, entry(t, "a.b", "", "5"))
	var changed *engine.EpochChangedError
	for _, c := range []struct {
		p     engine.Position
		valid bool
	}{
		{engine.Position{Epoch: first, Offset: 2}, true}, {engine.Position{Epoch: first, Offset: 3}, false},
		{engine.Position{Epoch: second, Offset: 2}, true}, {engine.Position{Epoch: second, Offset: 3}, false},
		{engine.Position{Epoch: third.Epoch, Offset: 3}, true}, {engine.Position{Epoch: third.Epoch, Offset: 4}, false},
		{engine.Position{Epoch: "", Offset: 3}, true}, {engine.Position{Epoch: "", Offset: 4}, false},
		{engine.Position{Epoch: "0123456789abcdef"}, false},
	} {
		if err := l.Check(c.p); (err == nil) != c.valid || err != nil && !errors.As(err, &changed) {
			t.Errorf("%+v: %v, want valid %v", c.p, err, c.valid)
		}
	}
}

// A tail must hand over everything above its start, whoever publishes meanwhile, from the ring or from the log.
func TestTailSeam(t *testing.T) {
	for _, h := range append(histories, engine.HistoryNone) {
		t.Run(string(h), func(t *testing.T) {
			l := logOf(t, open(t, vfs.NewMem(), "data", window(h)), "a")
			const publishers, each = 4, 200
			var group sync.WaitGroup
			for range publishers {
				group.Go(func() {
					for range each {
						add(t, l, entry(t, "a.b", "", "x"))
					}
				})
			}
			var tails sync.WaitGroup
			for range 5 {
				tails.Go(func() {
					start := l.State().Head
					tail, err := l.Tail(start)
					if err != nil {
						t.Error(err)
						return
					}
					defer tail.Close()
					next := start + 1
					for next <= publishers*each {
						page, err := tail.Next(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						for _, ev := range page.Events {
							if h == engine.HistoryNone && next == start+1 {
								next = ev.Offset // a log without history is followed from now on
							}
							if ev.Offset != next {
								t.Errorf("offset %d, want %d", ev.Offset, next)
								return
							}
							next++
						}
						if h == engine.HistoryNone && len(page.Events) == 0 {
							return
						}
					}
				})
				if h == engine.HistoryNone {
					break // late tails might wait for ever for events that have passed
				}
			}
			group.Wait()
			if h == engine.HistoryNone {
				add(t, l, entry(t, "a.b", "", "last"))
			}
			tails.Wait()
		})
	}
}

func TestCloseEndsTails(t *testing.T) {
	e := open(t, vfs.NewMem(), "data", window(engine.HistoryDisk))
	l := logOf(t, e, "a")
	tail, err := l.Tail(0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var group sync.WaitGroup
	group.Go(func() {
		_, err := tail.Next(context.Background())
		done <- err
	})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	if err := <-done; !errors.Is(err, engine.ErrClosed) {
		t.Errorf("tail ended with %v", err)
	}
	if _, err := l.Append(context.Background(), []engine.Entry{entry(t, "a.b", "", "")}, engine.AppendEach); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
}
