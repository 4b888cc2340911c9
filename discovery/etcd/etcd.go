// Package etcd lets servers be found through etcd: Register puts the address of a server there and keeps it there, and NewResolver makes
// clients of etcd:///SERVICE follow what is there.
//
//	client, err := runnel.Dial("etcd:///quotes", runnel.WithResolver(etcd.NewResolver(cluster)))
//
// A server is a key PREFIX/SERVICE/ADDRESS with the value {"addr":"ADDRESS"}, on a lease: it goes away by itself when the server dies. Who may
// write there decides where clients go, so etcd must be as well guarded as the servers are.
//
// The package links etcd's client, and the rest of the SDK does not.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// DefaultPrefix is what all keys begin with unless WithPrefix says otherwise.
	DefaultPrefix = "/runnel/services"
	// DefaultTTL is how long a server that has died, or lost etcd, is still listed.
	DefaultTTL = 10 * time.Second
	// DefaultEmptyAfter is how long a service without servers keeps the last ones it had.
	DefaultEmptyAfter = 30 * time.Second

	maxServers = 1000 // of a service; more are ignored
	maxKey     = 512  // bytes
	maxValue   = 4096 // bytes
	maxName    = 128  // bytes of a service's name

	callTimeout = 5 * time.Second // of one request to etcd
)

type options struct {
	prefix     string
	ttl        time.Duration
	emptyAfter time.Duration
	logger     *slog.Logger
}

// Option configures Register and NewResolver.
type Option func(*options)

// WithPrefix is what all keys begin with; default DefaultPrefix. Servers and clients must agree on it.
func WithPrefix(prefix string) Option { return func(o *options) { o.prefix = prefix } }

// WithTTL is how long a server that has died, or lost etcd, is still listed; default DefaultTTL, at least a second. It is for Register.
func WithTTL(ttl time.Duration) Option { return func(o *options) { o.ttl = ttl } }

// WithEmptyAfter is how long a client does not believe that a service which had servers has none: it keeps those it knows, since somebody who
// clears etcd must not cut every client off. Default DefaultEmptyAfter. It is for NewResolver.
func WithEmptyAfter(d time.Duration) Option { return func(o *options) { o.emptyAfter = d } }

// WithLogger is told when etcd cannot be reached, and of what is not understood there; default none.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

func newOptions(opts []Option) options {
	o := options{prefix: DefaultPrefix, ttl: DefaultTTL, emptyAfter: DefaultEmptyAfter, logger: slog.New(slog.DiscardHandler)}
	for _, set := range opts {
		set(&o)
	}
	return o
}

// CheckService says in one line what is wrong with the name of a service.
func CheckService(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return fmt.Errorf("%.64q is not the name of a service: letters, digits, -, _ and ., at most %d", name, maxName)
	}
	return nil
}

// folder is what all keys of a service begin with. It ends with a slash, or the servers of svc2 would be svc's too.
func (o *options) folder(service string) (string, error) {
	if err := CheckService(service); err != nil {
		return "", err
	}
	if o.prefix == "" || len(o.prefix) > maxName || !utf8.ValidString(o.prefix) {
		return "", fmt.Errorf("%.64q is not a prefix of keys", o.prefix)
	}
	return strings.TrimSuffix(o.prefix, "/") + "/" + service + "/", nil
}

// checkAddress says what is wrong with an address that others are to reach.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || len(address) > maxKey/2 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ',' }) {
		return fmt.Errorf("%.64q is not HOST:PORT", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("the port of %.64q is not a number from 1 to 65535", address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("%.64q is no address that others can reach", address)
	}
	return nil
}

// entry is the value of a key. Those of etcd's own package naming/endpoints read the same.
type entry struct {
	Addr string `json:"addr"`
}

// parse reads a key and its value.
func parse(key, value []byte) (address string, err error) {
	var e entry
	switch {
	case len(key) > maxKey:
		return "", fmt.Errorf("the key has %d bytes, more than %d", len(key), maxKey)
	case len(value) > maxValue:
		return "", fmt.Errorf("the value has %d bytes, more than %d", len(value), maxValue)
	}
	if err := json.Unmarshal(value, &e); err != nil {
		return "", errors.New("the value is not a JSON object with addr")
	}
	return e.Addr, checkAddress(e.Addr)
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// backoff spaces attempts: a random time up to a bound that doubles, so that not all come back at once.
type backoff struct{ bound, most time.Duration }

func (b *backoff) reset() { b.bound = 0 }

// wait reports whether ctx goes on.
func (b *backoff) wait(ctx context.Context) bool {
	b.bound = min(max(2*b.bound, minBackoff), b.most)
	t := time.NewTimer(minBackoff/2 + rand.N(b.bound))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
