package natsengine

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

func unmarshal(t testing.TB, b []byte, m proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
}

// Nodes share logs: an id is stored once, one of racing conditions wins, and a position of one is good at the other at once.
func TestNodes(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 3)
	var logs []*log
	for i := range 3 {
		logs = append(logs, logOf(t, open(t, Options{URLs: c.URLs()[i : i+1], Name: fmt.Sprint(i)}), "n"))
	}
	newest := uint64(0)
	for round := range 20 {
		var results, conditions [3]engine.Result
		var group sync.WaitGroup
		for i, l := range logs {
			group.Go(func() {
				results[i] = put(t, l, entry("n.a", fmt.Sprint(round)))[0]
				if err := logs[(i+1)%3].Check(engine.Position{Epoch: l.State().Epoch, Offset: results[i].Offset}); err != nil {
					t.Errorf("a position of another node: %v", err)
				}
			})
			group.Go(func() {
				en := entry("n.b", fmt.Sprint(round, " ", i))
				en.Conditional, en.Expected = true, newest
				res, err := l.Append(t.Context(), []engine.Entry{en}, engine.AppendEach)
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				conditions[i] = res[0]
			})
		}
		group.Wait()
		fresh, won := 0, 0
		for i := range results {
			if !results[i].Duplicate {
				fresh++
			}
			if results[i].Offset != results[0].Offset || results[i].Timestamp != results[0].Timestamp {
				t.Errorf("%+v beside %+v", results[i], results[0])
			}
			if conditions[i].Err == nil {
				won, newest = won+1, conditions[i].Offset
			}
		}
		if fresh != 1 || won != 1 {
			t.Fatalf("%d stored, %d won: %+v, %+v", fresh, won, results, conditions)
		}
		for _, r := range conditions {
			var conflict *engine.ConflictError
			if r.Err != nil && (!errors.As(r.Err, &conflict) || conflict.Current != newest) {
				t.Errorf("%v, and the newest is %d", r.Err, newest)
			}
		}
	}
	for _, l := range logs {
		if err := l.await(t.Context(), logs[0].State().Head); err != nil {
			t.Fatal(err)
		}
		if got := everything(t, l); len(got) != 40 {
			t.Errorf("%d events, want 40", len(got))
		}
	}
	large := entry("n.a", strings.Repeat("x", 5<<20))
	if res, err := logs[0].Append(t.Context(), []engine.Entry{large}, engine.AppendEach); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("an event that NATS does not take: %+v, %v", res, err)
	}
	if oldest, err := logs[0].Trim(t.Context(), 10); err != nil || oldest != 11 {
		t.Errorf("trimmed: oldest %d, %v", oldest, err)
	}
	until(t, "trimming at the other nodes", func() bool { return logs[1].State().Oldest == 11 && logs[2].State().Oldest == 11 })
}

// What Open and Log cannot work with they say in one line.
func TestErrors(t *testing.T) {
	t.Parallel()
	secured := natstest.New(t, 1, func(o *server.Options) { o.Username, o.Password = "runnel", "secret" })
	bare := natstest.New(t, 1, func(o *server.Options) { o.JetStream = false })
	plain := natstest.New(t, 1)
	for _, c := range []struct {
		name, want string
		o          Options
	}{
		{"unreachable", "NATS is not reachable at nats://127.0.0.1:1", Options{URLs: []string{"nats://127.0.0.1:1"}}},
		{"nothing named", "no NATS server is named", Options{}},
		{"no credentials", "NATS refuses this node's credentials", Options{URLs: secured.URLs()}},
		{"wrong credentials", "NATS refuses this node's credentials", Options{URLs: secured.URLs(), Credentials: Credentials{User: "runnel", Password: "x"}}},
		{"two kinds of credentials", "more than one kind of credentials", Options{URLs: secured.URLs(), Credentials: Credentials{User: "runnel", Token: "x"}}},
		{"a file that is not there", "cannot use the credentials", Options{URLs: secured.URLs(), Credentials: Credentials{NKeySeed: "/none"}}},
		{"no JetStream", "NATS has no JetStream", Options{URLs: bare.URLs()}},
		{"large events", "raise max_payload", Options{URLs: plain.URLs(), MaxEvent: 8 << 20}},
		{"a bad prefix", "bad prefix", Options{URLs: plain.URLs(), Prefix: "a.b"}},
	} {
		c.o.Logger = discard
		e, err := Open(c.o)
		if err == nil {
			_ = e.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	open(t, Options{URLs: secured.URLs(), Replicas: 1, Credentials: Credentials{User: "runnel", Password: "secret"}})
	for version, want := range map[string]bool{"2.14.0": true, "2.13.9": false, "3.0.0": true, "2.15.2-beta": true, "": false, "1.99.0": false} {
		if newEnough(version) != want {
			t.Errorf("version %q: %v", version, !want)
		}
	}
	js := jetStream(t, plain)
	for name, change := range map[string]func(*jetstream.StreamConfig){
		"storage is Memory":      func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"not made by Runnel":     func(c *jetstream.StreamConfig) { c.Metadata = nil },
		"must allow direct gets": func(c *jetstream.StreamConfig) { c.AllowDirect = false },
		"messages per subject":   func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 },
	} {
		o := Options{Prefix: "p", Replicas: 1}
		cfg := o.settings("n", engine.Config{})
		cfg.Name = "p_n"
		cfg.Metadata = map[string]string{metaEpoch: newEpoch()}
		change(&cfg)
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		e := open(t, Options{URLs: plain.URLs(), Replicas: 1, Prefix: "p"})
		if _, err := e.Log("n"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
		if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
			t.Fatal(err)
		}
		l := logOf(t, e, "n") // what failed is tried again
		_ = e.Close()
		if err := js.DeleteStream(t.Context(), l.stream); err != nil {
			t.Fatal(err)
		}
	}
}

func jetStream(t testing.TB, c *natstest.Cluster) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(strings.Join(c.URLs(), ","))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// A stream that is deleted by hand ends its log, followers are told, and the next has another epoch. One event deleted by hand is damage.
func TestStreamChanges(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	js := jetStream(t, c)
	e := open(t, Options{URLs: c.URLs(), Replicas: 1})
	l := logOf(t, e, "n")
	for i := range 20 {
		put(t, l, entry("n.a", fmt.Sprint(i)))
	}
	stream, err := js.Stream(t.Context(), l.stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	fresh := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n") // with nothing in memory
	var damaged []engine.Range
	events := 0
	for after := uint64(0); after < 20; {
		p, err := fresh.Read(t.Context(), engine.ReadRequest{After: after})
		if err != nil {
			t.Fatal(err)
		}
		damaged, events, after = append(damaged, p.Damaged...), events+len(p.Events), p.Scanned
	}
	if events != 19 || len(damaged) != 1 || damaged[0] != (engine.Range{From: 7, To: 7}) {
		t.Errorf("%d events, damaged %v", events, damaged)
	}
	before := l.State()
	tail, err := l.Tail(before.Head)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), l.stream); err != nil {
		t.Fatal(err)
	}
	if _, err = tail.Next(t.Context()); !errors.Is(err, engine.ErrDeleted) {
		t.Errorf("%v", err)
	}
	anew := logOf(t, e, "n")
	if anew.State().Epoch == before.Epoch {
		t.Errorf("the stream that was made anew has the epoch of the one before")
	}
	var changed *engine.EpochChangedError
	if err := anew.Check(engine.Position{Epoch: before.Epoch, Offset: 3}); !errors.As(err, &changed) {
		t.Errorf("a position in the stream that is gone: %v", err)
	}
	if r := put(t, anew, entry("n.a", "1"))[0]; r.Offset != 1 || r.Duplicate {
		t.Errorf("%+v", r)
	}
}

// Events go when they are old, though nobody publishes.
func TestAge(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	e := open(t, Options{URLs: c.URLs(), Replicas: 1, Namespace: func(string) (engine.Config, bool) {
		return engine.Config{History: engine.HistoryDisk, MaxAge: 500 * time.Millisecond}, true
	}})
	l := logOf(t, e, "n")
	put(t, l, entry("n.a", "1"), entry("n.b", "2"))
	until(t, "trimming", func() bool { s := l.State(); return s.Oldest == 3 && s.Head == 2 })
	if r := put(t, l, entry("n.a", "3"))[0]; r.Offset != 3 {
		t.Errorf("%+v", r)
	}
	var gone *engine.PositionGoneError
	if _, err := l.Read(t.Context(), engine.ReadRequest{}); !errors.As(err, &gone) || gone.Oldest != 3 {
		t.Errorf("%v", err)
	}
}
