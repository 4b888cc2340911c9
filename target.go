package runnel

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/resolver"
)

// static is the scheme of targets that list their addresses themselves.
const static = "static"

// maxAddresses bounds a list of addresses.
const maxAddresses = 1000

// WithResolver lets Dial take targets of the resolver's scheme, for this client alone: see package discovery/etcd. Resolvers that are
// registered with grpc (google.golang.org/grpc/resolver.Register) need no option.
func WithResolver(b resolver.Builder) Option {
	return func(o *options) { o.resolvers = append(o.resolvers, b) }
}

// destination is a target as grpc takes it, and who resolves it.
type destination struct {
	target  string
	builder resolver.Builder
}

// destination reads a target: HOST:PORT, some of them with commas between, or SCHEME:///... of a resolver that is known. Its error says in
// one line what is wrong.
func (o *options) destination(target string) (destination, error) {
	scheme, rest, has := strings.Cut(target, "://")
	if scheme == static {
		rest, has = strings.TrimPrefix(rest, "/"), false
	} else if !has {
		rest = target
		// unix:PATH and dns:NAME; but in NAME:PORT there is no scheme, whatever the name.
		if u, err := url.Parse(target); err == nil && u.Scheme != "" && !isAddress(target) && o.resolver(u.Scheme) != nil {
			scheme, has = u.Scheme, true
		}
	}
	if has {
		return o.resolved(scheme, target)
	}
	list, err := addresses(rest)
	if err != nil {
		return destination{}, err
	}
	if len(list) == 1 && scheme != static {
		return destination{target, resolver.Get("dns")}, nil
	}
	return destination{static + ":///" + strings.Join(list, ","), listBuilder{}}, nil
}

func (o *options) resolved(scheme, target string) (destination, error) {
	b := o.resolver(scheme)
	if b == nil {
		return destination{}, fmt.Errorf("no resolver is known for %s:; write HOST:PORT, several with commas between, dns:///HOST:PORT, or give one with WithResolver", scheme)
	}
	u, err := url.Parse(target)
	if err != nil {
		return destination{}, fmt.Errorf("it is no URL: %w", errors.Unwrap(err))
	}
	name := resolver.Target{URL: *u}.Endpoint()
	if name == "" {
		return destination{}, fmt.Errorf("there is no name behind %s:///", scheme)
	}
	if scheme == "dns" && strings.Contains(name, ",") {
		return destination{}, errors.New("dns:/// takes one name; write a list without it")
	}
	return destination{target, b}, nil
}

func (o *options) resolver(scheme string) resolver.Builder {
	i := slices.IndexFunc(o.resolvers, func(b resolver.Builder) bool { return b.Scheme() == scheme })
	if i >= 0 {
		return o.resolvers[i]
	}
	return resolver.Get(scheme)
}

func isAddress(s string) bool { return checkAddress(s) == nil }

func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("it must be HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("its port must be a number from 1 to 65535")
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/,@?#", r) }) {
		return errors.New("its host is no name and no IP address")
	}
	return nil
}

// addresses reads a list, in which an address may be there twice.
func addresses(s string) (list []string, err error) {
	for one := range strings.SplitSeq(s, ",") {
		if one = strings.TrimSpace(one); slices.Contains(list, one) {
			continue
		}
		if err := checkAddress(one); err != nil {
			if one == s {
				return nil, err
			}
			return nil, fmt.Errorf("%q: %w", one, err)
		}
		if list = append(list, one); len(list) > maxAddresses {
			return nil, fmt.Errorf("it lists more than %d addresses", maxAddresses)
		}
	}
	return list, nil
}

// listBuilder resolves static targets: to what they list, once.
type listBuilder struct{}

func (listBuilder) Scheme() string { return static }

// OverrideAuthority is what calls are addressed to: a list would be none that a proxy understands.
func (listBuilder) OverrideAuthority(t resolver.Target) string {
	first, _, _ := strings.Cut(t.Endpoint(), ",")
	return first
}

func (listBuilder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	list, err := addresses(t.Endpoint())
	if err != nil {
		return nil, err
	}
	var s resolver.State
	for _, one := range list {
		// The server's certificate must be that of the address, not of the list.
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: one, ServerName: one}}})
	}
	_ = cc.UpdateState(s) // addresses that the policy does not take there is nothing to be done about
	return listed{}, nil
}

type listed struct{}

func (listed) ResolveNow(resolver.ResolveNowOptions) {}
func (listed) Close()                                {}
