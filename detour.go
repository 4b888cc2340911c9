package runnel

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
)

// detour keeps a link off one address for a while: that of the server that the client is to leave. Otherwise what resolves the target
// would lead straight back to it. The address is avoided only as long as there are others.
type detour struct {
	inner resolver.Builder
	avoid string

	mu    sync.Mutex
	over  bool
	timer *time.Timer
	cc    resolver.ClientConn // of the newest resolver; nil before the first
	state resolver.State      // all that it has resolved
}

// detourFor is longer than a server takes to stop, by default. Then it is gone, or was started again.
const detourFor = time.Minute

func newDetour(inner resolver.Builder, avoid string) *detour {
	d := &detour{inner: inner, avoid: avoid, over: avoid == ""}
	if !d.over {
		d.timer = time.AfterFunc(detourFor, d.end)
	}
	return d
}

// option makes a link resolve through the detour.
func (d *detour) option() grpc.DialOption {
	if o, ok := d.inner.(resolver.AuthorityOverrider); ok {
		return grpc.WithResolvers(struct {
			*detour
			resolver.AuthorityOverrider
		}{d, o})
	}
	return grpc.WithResolvers(d)
}

func (d *detour) Scheme() string { return d.inner.Scheme() }

// Build implements resolver.Builder. A link that was idle builds again.
func (d *detour) Build(t resolver.Target, cc resolver.ClientConn, o resolver.BuildOptions) (resolver.Resolver, error) {
	d.mu.Lock()
	d.cc, d.state = cc, resolver.State{}
	d.mu.Unlock()
	return d.inner.Build(t, detoured{cc, d}, o)
}

// detoured is what the inner resolver talks to.
type detoured struct {
	resolver.ClientConn
	d *detour
}

func (c detoured) UpdateState(s resolver.State) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.d.cc == c.ClientConn {
		c.d.state = s
	}
	if !c.d.over {
		s = without(s, c.d.avoid)
	}
	return c.ClientConn.UpdateState(s)
}

// end lets the link go everywhere.
func (d *detour) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return
	}
	d.over = true
	d.timer.Stop()
	if d.cc != nil && len(endpointsOf(d.state)) > 0 {
		_ = d.cc.UpdateState(d.state) // a link that is closed says so
	}
}

// close frees the timer.
func (d *detour) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	if d.timer != nil {
		d.timer.Stop()
	}
}

// others reports whether there is anywhere to go but to one address.
func (d *detour) others(than string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	return slices.ContainsFunc(endpointsOf(without(d.state, than)), func(e resolver.Endpoint) bool {
		return slices.ContainsFunc(e.Addresses, func(a resolver.Address) bool { return a.Addr != than && !leadsTo(ctx, a.Addr, than) })
	})
}

// several reports whether the target leads to several servers. An IPv4 and an IPv6 address are taken for the same one.
func (d *detour) several() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := map[string]int{}
	for _, e := range endpointsOf(d.state) {
		for _, a := range e.Addresses {
			family := ""
			if host, _, err := net.SplitHostPort(a.Addr); err == nil {
				if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
					family = "4"
				} else if err == nil {
					family = "6"
				}
			}
			if seen[family]++; seen[family] > 1 {
				return true
			}
		}
	}
	return false
}

// endpointsOf are the endpoints of a state, also of one that has only addresses.
func endpointsOf(s resolver.State) []resolver.Endpoint {
	if s.Endpoints != nil {
		return s.Endpoints
	}
	var list []resolver.Endpoint
	for _, a := range s.Addresses {
		list = append(list, resolver.Endpoint{Addresses: []resolver.Address{a}})
	}
	return list
}

// without is a state without one address, unless nothing would be left.
func without(s resolver.State, address string) resolver.State {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	all := endpointsOf(s)
	// Addresses of peers are numbers. A name is looked up only where no number is the one.
	for _, same := range []func(a string) bool{
		func(a string) bool { return a == address },
		func(a string) bool { return leadsTo(ctx, a, address) },
	} {
		var left []resolver.Endpoint
		for _, e := range all {
			if !slices.ContainsFunc(e.Addresses, func(a resolver.Address) bool { return same(a.Addr) }) {
				left = append(left, e)
			}
		}
		if len(left) > 0 && len(left) < len(all) {
			s.Endpoints, s.Addresses = left, nil
			for _, e := range left {
				s.Addresses = append(s.Addresses, e.Addresses...)
			}
			return s
		}
	}
	return s
}

// lookupTimeout bounds how long the names of a list are looked up, all together, since nothing is resolved meanwhile.
const lookupTimeout = time.Second

// leadsTo reports whether an address with a name is that of a peer.
func leadsTo(ctx context.Context, address, peer string) bool {
	host, port, err := net.SplitHostPort(address)
	ip, peerPort, peerErr := net.SplitHostPort(peer)
	if err != nil || peerErr != nil || port != peerPort || net.ParseIP(host) != nil || net.ParseIP(ip) == nil || ctx.Err() != nil {
		return false
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	return err == nil && slices.Contains(found, ip)
}
