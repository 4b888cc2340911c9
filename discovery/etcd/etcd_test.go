package etcd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/resolver"
)

// told is what a client connection is told.
type told struct {
	resolver.ClientConn
	mu      sync.Mutex
	servers []string
	updates int
	errs    []string
}

func (c *told) UpdateState(s resolver.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = nil
	for _, e := range s.Endpoints {
		if e.Addresses[0].ServerName != e.Addresses[0].Addr {
			panic("a certificate of what?")
		}
		c.servers = append(c.servers, e.Addresses[0].Addr)
	}
	c.updates++
	return nil
}

func (c *told) ReportError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err.Error())
}

// seen is all of it, once nothing happens any more.
func (c *told) seen() (servers []string, updates int, errs []string) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers, c.updates, c.errs
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// resolve runs f in virtual time beside a resolver of svc. wait lets things happen.
func resolve(t *testing.T, f func(t *testing.T, e *fake, client *clientv3.Client, c *told, log *lines)) {
	synctest.Test(t, func(t *testing.T) {
		e, client := newFake()
		var log lines
		c := &told{}
		target, err := url.Parse("etcd:///svc")
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewResolver(client, WithLogger(slog.New(slog.NewTextHandler(&log, nil)))).Build(resolver.Target{URL: *target}, c, resolver.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f(t, e, client, c, &log)
		r.Close()
	})
}

func put(e *fake, name, address string) {
	e.Put(context.Background(), DefaultPrefix+"/"+name, `{"addr":"`+address+`"}`)
	synctest.Wait()
}

func (c *told) check(t *testing.T, want ...string) {
	t.Helper()
	if got, _, _ := c.seen(); !slices.Equal(got, want) {
		t.Errorf("servers %q, want %q", got, want)
	}
}

// Servers come and go, and those of a service with a longer name are not this one's.
func TestResolve(t *testing.T) {
	resolve(t, func(t *testing.T, e *fake, _ *clientv3.Client, c *told, log *lines) {
		if _, n, errs := c.seen(); n != 0 || len(errs) != 1 || !strings.Contains(errs[0], "no server is listed in etcd under /runnel/services/svc") {
			t.Fatalf("%d updates, %q", n, errs)
		}
		put(e, "svc2/x", "other:1")
		c.check(t)
		put(e, "svc/x", "a:1")
		c.check(t, "a:1")
		put(e, "svc/y", "b:1")
		put(e, "svc/z", "b:1") // the same server, twice
		c.check(t, "a:1", "b:1")
		e.drop("svc/x")
		c.check(t, "b:1")
		put(e, "svc/y", "c:1")
		c.check(t, "b:1", "c:1")
		if log.String() != "" {
			t.Errorf("log: %s", log)
		}
	})
}

// A list that becomes empty is believed after a while; until then, and while etcd is away, the client keeps what it knows.
func TestResolveKeepsTheLast(t *testing.T) {
	resolve(t, func(t *testing.T, e *fake, _ *clientv3.Client, c *told, log *lines) {
		put(e, "svc/x", "a:1")
		e.drop("svc")
		time.Sleep(DefaultEmptyAfter - time.Second)
		c.check(t, "a:1")
		put(e, "svc/x", "b:1") // it was a short one
		c.check(t, "b:1")
		time.Sleep(time.Minute)
		c.check(t, "b:1")

		e.set(true)
		e.breakWatches()
		e.drop("svc")
		time.Sleep(time.Hour)
		c.check(t, "b:1")
		if n := strings.Count(log.String(), "those that are known stay"); n != 1 {
			t.Errorf("an hour without etcd fills the log: %s", log)
		}
		e.set(false)
		time.Sleep(2 * maxBackoff)
		c.check(t, "b:1") // it is empty now
		time.Sleep(DefaultEmptyAfter + time.Second)
		c.check(t)
		if _, n, _ := c.seen(); n != 3 {
			t.Errorf("%d updates", n)
		}
		put(e, "svc/x", "c:1")
		c.check(t, "c:1")
	})
}

// A watch that breaks, because etcd has compacted what it wants to know, is followed by another list; one that keeps breaking costs little.
func TestResolveListsAgain(t *testing.T) {
	resolve(t, func(t *testing.T, e *fake, _ *clientv3.Client, c *told, _ *lines) {
		put(e, "svc/x", "a:1")
		e.mu.Lock()
		e.kvs[DefaultPrefix+"/svc/y"] = e.kvs[DefaultPrefix+"/svc/x"] // without a word
		delete(e.kvs, DefaultPrefix+"/svc/x")
		e.kvs[DefaultPrefix+"/svc/y"].Value = []byte(`{"addr":"b:1"}`)
		e.kvs[DefaultPrefix+"/svc/y"].Key = []byte(DefaultPrefix + "/svc/y")
		e.mu.Unlock()
		c.check(t, "a:1")
		e.breakWatches()
		time.Sleep(time.Second)
		c.check(t, "b:1")
		e.count()
		for range 600 {
			e.breakWatches()
			time.Sleep(100 * time.Millisecond)
		}
		if n := e.count(); n > 30 {
			t.Errorf("%d lists in a minute of trouble", n)
		}
		time.Sleep(time.Minute)
		e.count()
		time.Sleep(time.Hour)
		if n := e.count(); n < 9 || n > 16 {
			t.Errorf("%d lists in an hour without trouble", n)
		}
		c.check(t, "b:1")
	})
}

// What is not understood is said once, and what is too much is left out.
func TestResolveIgnoresGarbage(t *testing.T) {
	resolve(t, func(t *testing.T, e *fake, _ *clientv3.Client, c *told, log *lines) {
		put(e, "svc/x", "a:1")
		for i, value := range []string{"", "a:1", "{", `{"addr":"a"}`, `{"addr":":1"}`, `{"addr":"0.0.0.0:1"}`, `{"addr":"a:0"}`, `{"addr":"a/b:1"}`, `{"addr":7}`,
			`{"addr":"a:1","x":"` + strings.Repeat("x", maxValue) + `"}`} {
			e.Put(context.Background(), fmt.Sprintf("%s/svc/bad%d", DefaultPrefix, i), value)
		}
		e.Put(context.Background(), DefaultPrefix+"/svc/"+strings.Repeat("k", maxKey), `{"addr":"b:1"}`)
		c.check(t, "a:1")
		e.breakWatches()
		time.Sleep(time.Hour)
		c.check(t, "a:1")
		if n := strings.Count(log.String(), "a key in etcd was ignored"); n != 11 {
			t.Errorf("%d lines: %s", n, log)
		}
		put(e, "svc/bad0", "b:1") // it was mended
		c.check(t, "a:1", "b:1")
		e.Put(context.Background(), DefaultPrefix+"/svc/x", "garbage") // and this one broken
		c.check(t, "b:1")
		for i := range maxServers + 10 {
			e.Put(context.Background(), fmt.Sprintf("%s/svc/%d", DefaultPrefix, i), fmt.Sprintf(`{"addr":"h%d:1"}`, i))
		}
		if servers, _, _ := c.seen(); len(servers) != maxServers || strings.Count(log.String(), "too many servers") != 1 {
			t.Errorf("%d servers", len(servers))
		}
	})
}

// A server is listed until it is closed, whatever happens to its lease, its key, or etcd.
func TestRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, client := newFake()
		e.set(true)
		var log lines
		r, err := Register(t.Context(), client, "svc", "a:1", WithPrefix("/p/"), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("an hour without etcd: %s", &log)
		}
		check := func(want ...string) {
			t.Helper()
			time.Sleep(2 * maxBackoff)
			synctest.Wait()
			if got := e.keys(); !slices.Equal(got, want) {
				t.Errorf("keys %q, want %q", got, want)
			}
		}
		check()
		e.set(false)
		if err := r.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		const listed = `/p/svc/a:1 {"addr":"a:1"}`
		check(listed)
		e.expire()
		check(listed)
		e.drop("svc")
		check(listed)
		e.set(true)
		e.mu.Lock()
		e.dropLocked(func(*mvccpb.KeyValue) bool { return true })
		e.mu.Unlock()
		e.expire()
		check()
		e.set(false)
		check(listed)
		r.Close()
		if got := e.keys(); len(got) > 0 {
			t.Errorf("closed: %q", got)
		}
		if e.grants > 6 {
			t.Errorf("%d leases", e.grants)
		}
		// One that comes back at its address before its old lease is over is listed once, and the old one does not take it off.
		old, err := Register(t.Context(), client, "svc", "a:1")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		next, err := Register(t.Context(), client, "svc", "a:1")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		old.Close()
		check(DefaultPrefix + `/svc/a:1 {"addr":"a:1"}`)
		next.Close()
		check()
	})
}

// What cannot work is refused at once.
func TestRegisterRefuses(t *testing.T) {
	_, client := newFake()
	for _, c := range []struct{ service, address, want string }{
		{"", "a:1", "not the name of a service"},
		{"a/b", "a:1", "not the name of a service"},
		{strings.Repeat("x", 129), "a:1", "not the name of a service"},
		{"svc", "", "not HOST:PORT"},
		{"svc", "a", "not HOST:PORT"},
		{"svc", "a:b", "the port"},
		{"svc", ":1", "no address that others can reach"},
		{"svc", "0.0.0.0:1", "no address that others can reach"},
		{"svc", "[::]:1", "no address that others can reach"},
	} {
		if r, err := Register(t.Context(), client, c.service, c.address); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
			r.Close()
		}
	}
	if _, err := Register(t.Context(), client, "svc", "a:1", WithTTL(time.Millisecond)); err == nil {
		t.Error("a lease of a millisecond")
	}
	if _, err := Register(t.Context(), client, "svc", "a:1", WithPrefix("")); err == nil {
		t.Error("no prefix")
	}
}
