package runnel

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// resolved is where a link is led.
type resolved struct {
	resolver.ClientConn
	mu sync.Mutex
	to string
}

func (r *resolved) UpdateState(s resolver.State) error {
	var all []string
	for _, e := range s.Endpoints {
		all = append(all, e.Addresses[0].Addr)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = strings.Join(all, ",")
	return nil
}

func stateOf(list ...string) (s resolver.State) {
	for _, a := range list {
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	return s
}

// A link is kept off an address for a minute, if there are others, whatever is resolved meanwhile; or until it is told that these do not serve.
func TestDetour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := manual.NewBuilderWithScheme("test")
		names.InitialState(stateOf("a:1", "b:1", "c:1"))
		begin := func() (*detour, *resolved) {
			d, cc := newDetour(names, "b:1"), &resolved{}
			if _, err := d.Build(resolver.Target{URL: url.URL{}}, cc, resolver.BuildOptions{}); err != nil {
				t.Fatal(err)
			}
			return d, cc
		}
		check := func(cc *resolved, want string) {
			t.Helper()
			synctest.Wait()
			cc.mu.Lock()
			defer cc.mu.Unlock()
			if cc.to != want {
				t.Errorf("it leads to %s, want %s", cc.to, want)
			}
		}
		d, cc := begin()
		check(cc, "a:1,c:1")
		names.UpdateState(stateOf("b:1", "d:1"))
		check(cc, "d:1")
		names.UpdateState(stateOf("b:1"))
		check(cc, "b:1") // better than nothing
		names.UpdateState(stateOf("a:1", "b:1"))
		check(cc, "a:1")
		time.Sleep(detourFor)
		check(cc, "a:1,b:1")
		d.close()

		d, cc = begin()
		check(cc, "a:1")
		d.end()
		check(cc, "a:1,b:1")
		d.close()

		for list, want := range map[string]bool{"a:1": false, "b:1": true, "a:1,b:1": true, "": false} {
			d := newDetour(names, "")
			d.state = stateOf(slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" })...)
			if d.others("a:1") != want {
				t.Errorf("from a:1 there are others in %q: %v", list, !want)
			}
		}
	})
}

// What a list says is the address of a peer in numbers.
func TestLeadsTo(t *testing.T) {
	for _, c := range []struct {
		address, peer string
		want          bool
	}{
		{"localhost:7", "127.0.0.1:7", true},
		{"localhost:7", "127.0.0.1:8", false},
		{"localhost:7", "192.0.2.1:7", false},
		{"127.0.0.1:7", "127.0.0.2:7", false},
		{"nowhere.invalid:7", "127.0.0.1:7", false},
		{"/run/x.sock", "@", false},
	} {
		if got := leadsTo(t.Context(), c.address, c.peer); got != c.want {
			t.Errorf("%s is %s: %v", c.address, c.peer, got)
		}
	}
}
