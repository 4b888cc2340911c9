package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// ether is a bus in memory. Messages take a while, and what a node that is cut off sends is lost, as is what it should receive.
type ether struct {
	mu    sync.Mutex
	ears  map[*ear]func([]byte)
	delay time.Duration
	lose  func() bool
}

// ear is one node's end of it.
type ear struct {
	e    *ether
	mu   sync.Mutex // one message after the other
	cut  bool
	sent int
}

func newEther() *ether {
	return &ether{ears: map[*ear]func([]byte){}, delay: time.Millisecond, lose: func() bool { return false }}
}

func (r *ear) Send(b []byte) error {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.sent++
	if r.cut {
		return errors.New("cut off")
	}
	for other := range r.e.ears {
		if r.e.lose() {
			continue
		}
		time.AfterFunc(r.e.delay, func() {
			other.mu.Lock()
			defer other.mu.Unlock()
			r.e.mu.Lock()
			f := r.e.ears[other]
			if other.cut {
				f = nil
			}
			r.e.mu.Unlock()
			if f != nil {
				f(b)
			}
		})
	}
	return nil
}

func (r *ear) Listen(f func([]byte)) (func(), error) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.e.ears[r] = f
	return func() {
		r.e.mu.Lock()
		defer r.e.mu.Unlock()
		delete(r.e.ears, r)
	}, nil
}

func (r *ear) isolate(cut bool) {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.cut = cut
}

// node is a node of a test.
type node struct {
	*Cluster
	ear   *ear
	facts atomic.Pointer[Facts]
	log   bytes.Buffer
	end   func() // says good-bye
}

func (n *node) kill() { n.ear.isolate(true); n.end() }

// join lets a node join, and run.
func join(t *testing.T, e *ether, id string) (*node, error) {
	t.Helper()
	n := &node{ear: &ear{e: e}}
	n.facts.Store(&Facts{})
	address := id + ".example:1"
	if strings.HasPrefix(id, "127.") {
		address = id + ":1"
	}
	c, err := Join(t.Context(), Config{
		Bus: n.ear, Self: Node{ID: id, Started: time.Now().UnixMilli(), Address: address, Host: "host-" + id + ":1"},
		Facts: func() Facts { return *n.facts.Load() }, Logger: slog.New(slog.NewTextHandler(&n.log, nil)),
	})
	if err != nil {
		return nil, err
	}
	n.Cluster = c
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { c.Run(ctx) })
	n.end = func() { cancel(); group.Wait() }
	t.Cleanup(n.end)
	return n, nil
}

func must(t *testing.T, e *ether, id string) *node {
	t.Helper()
	n, err := join(t, e, id)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ids(c *Cluster) string {
	list, stale := c.Nodes()
	var all []string
	for _, n := range list {
		all = append(all, n.ID)
	}
	if stale {
		all = append(all, "stale")
	}
	return strings.Join(all, " ")
}

func check(t *testing.T, c *Cluster, want string) {
	t.Helper()
	if got := ids(c); got != want {
		t.Errorf("nodes %q, want %q", got, want)
	}
}

// A node that joins knows the others at once, and they it; one that leaves is forgotten at once, one that dies within its lifetime.
func TestMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a, b := must(t, e, "a"), must(t, e, "b")
		c := must(t, e, "c")
		check(t, c.Cluster, "a b c")
		time.Sleep(10 * time.Millisecond)
		check(t, a.Cluster, "a b c")
		time.Sleep(time.Hour)
		check(t, a.Cluster, "a b c")
		b.end()
		time.Sleep(10 * time.Millisecond)
		check(t, a.Cluster, "a c")
		c.kill()
		time.Sleep(lifetime - every*11/10 - time.Millisecond)
		check(t, a.Cluster, "a c")
		time.Sleep(every * 12 / 10)
		check(t, a.Cluster, "a")
		if n := a.ear.sent; n > 3600/2+3600/18+20 {
			t.Errorf("%d messages in an hour", n)
		}
	})
}

// A message lost now and then is no reason to forget anybody.
func TestLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		n := 0
		e.lose = func() bool { n++; return n%11 == 0 }
		a := must(t, e, "a")
		must(t, e, "b")
		time.Sleep(time.Minute)
		for range 600 {
			time.Sleep(time.Second)
			check(t, a.Cluster, "a b")
		}
	})
}

// The newcomer must choose another id, but a node that was killed comes back under its own, and is that node from then on.
func TestOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a, b := must(t, e, "a"), must(t, e, "b")
		_, err := join(t, e, "a")
		var taken *TakenError
		if !errors.As(err, &taken) || err.Error() != `node id "a" is in use by host-a:1: choose another with --node` {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Second)
		check(t, b.Cluster, "a b")
		a.kill()
		again := must(t, e, "a")
		time.Sleep(10 * time.Millisecond)
		check(t, b.Cluster, "a b")
		check(t, again.Cluster, "a b")
		if list, _ := b.Nodes(); list[0].Instance != again.cfg.Self.Instance {
			t.Error("the node is known by what it was before")
		}
		again.end()
		must(t, e, "a")
	})
}

// Of two, or of many, that start at once under one id exactly one goes on, in whatever order their messages come, and if some are lost.
func TestOneIDAtOnce(t *testing.T) {
	for seed := range 200 {
		synctest.Test(t, func(t *testing.T) {
			e := newEther()
			e.delay = time.Duration(seed%40) * time.Millisecond
			n := 0
			if seed%2 == 1 {
				e.lose = func() bool { n++; return n%7 == seed%7 }
			}
			var mu sync.Mutex
			var group sync.WaitGroup
			went := 0
			many := 2 + seed%4
			for i := range many {
				group.Go(func() {
					time.Sleep(time.Duration(i*seed%60) * time.Millisecond)
					if _, err := join(t, e, "a"); err == nil {
						mu.Lock()
						went++
						mu.Unlock()
					}
				})
			}
			group.Wait()
			if went != 1 {
				t.Errorf("seed %d: %d of %d went on", seed, went, many)
			}
		})
	}
}

// While messages do not get through a node keeps what it knew, says that it is old, and forgets it after a minute; then it hears again.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a := must(t, e, "a")
		must(t, e, "b")
		time.Sleep(10 * time.Second)
		a.ear.isolate(true)
		time.Sleep(staleFrom + every*11/10)
		for range 40 {
			time.Sleep(time.Second)
			check(t, a.Cluster, "a b stale")
			if len(a.Elsewhere()) != 1 {
				t.Error("nothing to go to, although what was known is not too old")
			}
		}
		a.ear.isolate(false)
		time.Sleep(every*11/10 + 10*time.Millisecond)
		check(t, a.Cluster, "a b")
		time.Sleep(time.Minute)
		check(t, a.Cluster, "a b")
		a.ear.isolate(true)
		time.Sleep(keep + every)
		check(t, a.Cluster, "a stale")
		a.ear.isolate(false)
		time.Sleep(every*11/10 + 100*time.Millisecond)
		check(t, a.Cluster, "a b")
	})
}

// Two that did not hear each other when they joined complain when they do.
func TestOneIDLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a := must(t, e, "a")
		a.ear.isolate(true)
		b := must(t, e, "a")
		a.ear.isolate(false)
		time.Sleep(3*complain + every)
		a.end()
		b.end()
		for _, n := range []*node{a, b} {
			if got := strings.Count(n.log.String(), "another node has the same id"); got < 3 || got > 4 {
				t.Errorf("%d complaints:\n%s", got, n.log.String())
			}
		}
	})
}

// Nodes that drain, take no events, or say no address are no place to go; those with less load tend to come first.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a := must(t, e, "a")
		idle, full := must(t, e, "idle"), must(t, e, "full")
		drains, sick := must(t, e, "drains"), must(t, e, "sick")
		full.facts.Store(&Facts{Load: 0.95})
		drains.facts.Store(&Facts{Draining: true})
		sick.facts.Store(&Facts{Trouble: true})
		for _, n := range []*node{full, drains, sick} {
			n.Announce()
		}
		must(t, e, "127.0.0.1") // means another machine to a
		time.Sleep(10 * time.Millisecond)
		first := map[string]int{}
		for range 1000 {
			list := a.Elsewhere()
			first[list[0]]++
			slices.Sort(list)
			if want := []string{"full.example:1", "idle.example:1"}; !slices.Equal(list, want) {
				t.Fatalf("%q, want %q", list, want)
			}
		}
		if first["idle.example:1"] < 900 || first["full.example:1"] == 0 {
			t.Errorf("first: %v", first)
		}
		for i := range 40 {
			must(t, e, fmt.Sprint("n", i))
		}
		if n := len(idle.Elsewhere()); n != maxOffered {
			t.Errorf("%d offered", n)
		}
	})
}

// What a stranger sends is bounded, and changes nothing that it should not.
func TestNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		a := must(t, e, "a")
		stranger := &ear{e: e}
		for _, s := range []string{
			"", "{", `{"v":2,"kind":"here","id":"x","instance":"1"}`, `{"v":1,"kind":"here","id":"","instance":"1"}`, `{"v":1,"kind":"here","id":"x\n","instance":"1"}`,
			`{"v":1,"kind":"here","id":"x","instance":"1","load":7}`, `{"v":1,"kind":"here","id":"x","instance":"1","sessions":-1}`,
			`{"v":1,"kind":"here","id":"x","instance":"1","address":"` + strings.Repeat("a", 300) + `"}`, `{"v":1,"kind":"what","id":"x","instance":"1"}`,
			`{"v":1,"kind":"taken","id":"a","instance":"1","to":"` + a.cfg.Self.Instance + `"}`, `{"v":1,"kind":"gone","id":"a","instance":"1"}`,
		} {
			if err := stranger.Send([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
		check(t, a.Cluster, "a")
		for i := range maxNodes + 10 {
			if err := stranger.Send(fmt.Appendf(nil, `{"v":1,"kind":"here","id":"x%d","instance":"%d"}`, i, i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Millisecond)
		if list, _ := a.Nodes(); len(list) != maxNodes+1 {
			t.Errorf("%d nodes", len(list))
		}
	})
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"here","id":"x","instance":"1","started":1,"address":"a:1","load":0.5}`))
	f.Add([]byte(`{"v":1,"kind":"ask","id":"a","instance":"1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Cluster{cfg: Config{Bus: &ear{e: newEther()}, Self: Node{ID: "a", Instance: "i"}, Facts: func() Facts { return Facts{} }, Logger: slog.New(slog.DiscardHandler)}, nodes: map[string]*Node{}, wake: make(chan struct{}, 1), joined: true}
		c.receive(b)
		if list, _ := c.Nodes(); len(list) > 2 {
			t.Errorf("%d nodes of one message", len(list))
		}
	})
}
