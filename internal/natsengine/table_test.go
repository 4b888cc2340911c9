package natsengine

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// seen is what a node knows of a table of values "key=value".
type seen struct {
	mu sync.Mutex
	m  map[string]string
}

func (s *seen) take(b []byte) {
	k, v, _ := strings.Cut(string(b), "=")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[k] = v
}

func (s *seen) until(t *testing.T, want map[string]string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		ok, got := maps.Equal(s.m, want), fmt.Sprint(s.m)
		s.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, want %v", got, want)
		}
	}
}

// What one node puts all have, also one that comes later, after all have gone, and when NATS was away; what is to be forgotten is.
func TestTable(t *testing.T) {
	c := natstest.New(t, 1)
	o := Options{URLs: c.URLs(), Replicas: 1}
	table := func(e *Engine) (*Table, *seen) {
		s := &seen{m: map[string]string{}}
		tab, err := e.Table("things", s.take)
		if err != nil {
			t.Fatal(err)
		}
		return tab, s
	}
	put := func(tab *Table, key, value string, forget time.Duration) {
		t.Helper()
		if err := tab.Put(t.Context(), key, []byte(key+"="+value), forget); err != nil {
			t.Fatal(err)
		}
	}
	first, second := open(t, o), open(t, o)
	a, sa := table(first)
	_, sb := table(second)
	put(a, "x", "1", 0)
	put(a, "y", "1", 0)
	put(a, "x", "2", 0)
	want := map[string]string{"x": "2", "y": "1"}
	sa.until(t, want)
	sb.until(t, want)
	third := open(t, o)
	b, sc := table(third)
	if !maps.Equal(sc.m, want) { // no lock: nothing is put
		t.Errorf("when it is open: %v", sc.m)
	}
	c.Stop(0)
	if err := a.Put(t.Context(), "z", []byte("z=1"), 0); err == nil {
		t.Error("stored while NATS is away")
	}
	c.Start(0)
	for deadline := time.Now().Add(30 * time.Second); b.Put(t.Context(), "z", []byte("z=2"), 0) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is stored")
		}
	}
	want["z"] = "2"
	for _, s := range []*seen{sa, sb, sc} {
		s.until(t, want)
	}
	put(b, "short", "1", time.Second)
	for _, e := range []*Engine{first, second, third} {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		e := open(t, o)
		_, s := table(e)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if maps.Equal(s.m, want) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("in the end %v", s.m)
		}
	}
	other := open(t, Options{URLs: c.URLs(), Replicas: 1, Prefix: "other"})
	if _, s := table(other); len(s.m) > 0 {
		t.Errorf("another prefix has %v", s.m)
	}
}

// A table whose values are forgotten while it is opened is open all the same.
func TestTableForgetsMeanwhile(t *testing.T) {
	t.Parallel()
	e := open(t, Options{URLs: natstest.New(t, 1).URLs(), Replicas: 1})
	first, err := e.Table("things", func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Put(t.Context(), "a", []byte("a"), time.Second); err != nil {
		t.Fatal(err)
	}
	var opening sync.WaitGroup
	for put := time.Now(); time.Since(put) < 1500*time.Millisecond; time.Sleep(2 * time.Millisecond) {
		if time.Since(put) < 800*time.Millisecond {
			continue
		}
		opening.Go(func() {
			if _, err := e.Table("things", func([]byte) {}); err != nil {
				t.Error(err)
			}
		})
	}
	opening.Wait()
}
