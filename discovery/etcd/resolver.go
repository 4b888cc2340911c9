package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/resolver"
)

// Scheme is the scheme of targets that the resolver takes: etcd:///SERVICE.
const Scheme = "etcd"

// NewResolver returns a resolver of etcd:///SERVICE for runnel.WithResolver, or for any client of grpc's. It lists the servers of the service
// and follows the changes. What it has found it keeps while etcd is away, and WithEmptyAfter when the list becomes empty.
func NewResolver(client *clientv3.Client, opts ...Option) resolver.Builder {
	return builder{client, newOptions(opts)}
}

type builder struct {
	client *clientv3.Client
	o      options
}

func (b builder) Scheme() string { return Scheme }

func (b builder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	folder, err := b.o.folder(t.Endpoint())
	if err != nil {
		return nil, err
	}
	w := &watcher{builder: b, folder: folder, cc: cc, bad: map[string]int64{}}
	w.empty = time.NewTimer(time.Hour)
	w.empty.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.group.Go(func() { w.run(ctx) })
	return w, nil
}

const (
	// refreshEvery is how often the list is read as a whole, give or take a quarter: an etcd that was restored from a backup counts from an older
	// revision, and a watch that waits for a newer one would wait in silence.
	refreshEvery = 5 * time.Minute
	// stableAfter is how long a watch must live to be worth an attempt without delay.
	stableAfter = 10 * time.Second
)

// watcher follows one service for one client connection. All but stop and group belongs to run.
type watcher struct {
	builder
	folder string
	cc     resolver.ClientConn
	stop   context.CancelFunc
	group  sync.WaitGroup

	servers map[string]string // addresses by key
	bad     map[string]int64  // keys that were complained about, and in which revision
	many    bool              // it was complained that there are too many
	told    []string          // what the client was told last
	empty   *time.Timer       // runs while the list is empty and the client was told of some
	armed   bool              // empty runs
	trouble bool              // it was logged that etcd is away
}

// ResolveNow implements resolver.Resolver. There is nothing to do: changes come by themselves.
func (w *watcher) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (w *watcher) Close() {
	w.stop()
	w.group.Wait()
}

func (w *watcher) run(ctx context.Context) {
	defer w.empty.Stop()
	b := backoff{most: maxBackoff}
	for {
		began := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil { // it is time to read everything again
			continue
		}
		if !w.trouble {
			w.trouble = true
			w.o.logger.Warn("etcd does not say where the servers are; those that are known stay", "keys", w.folder, "known", len(w.told), "err", err)
		}
		if w.told == nil {
			w.cc.ReportError(fmt.Errorf("etcd does not say where the servers of %s are: %w", w.folder, err))
		}
		if time.Since(began) > stableAfter {
			b.reset()
		}
		if !b.wait(ctx) {
			return
		}
	}
}

var errWatchEnded = errors.New("the watch has ended")

// follow lists the servers and follows changes, until something breaks, or it is time to list them again.
func (w *watcher) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, done := context.WithTimeout(ctx, callTimeout)
	res, err := w.client.Get(call, w.folder, clientv3.WithPrefix(), clientv3.WithLimit(maxServers+1))
	done()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", callTimeout)
	}
	if err != nil {
		return err
	}
	if w.trouble {
		w.trouble = false
		w.o.logger.Info("etcd says again where the servers are", "keys", w.folder)
	}
	w.servers = map[string]string{}
	seen := map[string]bool{}
	for _, kv := range res.Kvs {
		seen[string(kv.Key)] = true
		w.set(kv.Key, kv.Value, kv.ModRevision)
	}
	maps.DeleteFunc(w.bad, func(key string, _ int64) bool { return !seen[key] })
	w.tell()
	// Without a leader etcd says so, in place of saying nothing.
	changes := w.client.Watch(clientv3.WithRequireLeader(ctx), w.folder, clientv3.WithPrefix(), clientv3.WithRev(res.Header.Revision+1))
	refresh := time.NewTimer(refreshEvery*3/4 + rand.N(refreshEvery/2))
	defer refresh.Stop()
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return errWatchEnded
			}
			if err := c.Err(); err != nil { // also where the revision was compacted away
				return err
			}
			for _, e := range c.Events {
				if e.Type == clientv3.EventTypeDelete {
					delete(w.servers, string(e.Kv.Key))
					delete(w.bad, string(e.Kv.Key))
				} else {
					w.set(e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
				}
			}
			w.tell()
		case <-w.empty.C:
			w.armed = false
			w.o.logger.Warn("a service has no servers any more", "keys", w.folder, "for", w.o.emptyAfter)
			w.update(nil)
		case <-refresh.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// set takes a key that is new or has changed. What is not understood is complained about once.
func (w *watcher) set(key, value []byte, revision int64) {
	name := string(key)
	address, err := parse(key, value)
	if err != nil {
		delete(w.servers, name)
		if w.bad[name] != revision && len(w.bad) < maxServers {
			w.bad[name] = revision
			w.o.logger.Warn("a key in etcd was ignored", "key", fmt.Sprintf("%.200q", name), "err", err)
		}
		return
	}
	delete(w.bad, name)
	if _, known := w.servers[name]; !known && len(w.servers) >= maxServers {
		if !w.many {
			w.many = true
			w.o.logger.Warn("a service has too many servers; the rest is ignored", "keys", w.folder, "most", maxServers)
		}
		return
	}
	w.servers[name] = address
}

// tell tells the client where the servers are, if that has changed and can be believed.
func (w *watcher) tell() {
	list := slices.Compact(slices.Sorted(maps.Values(w.servers)))
	if len(list) > 0 {
		w.empty.Stop()
		w.armed = false
		if !slices.Equal(list, w.told) {
			w.update(list)
		}
		return
	}
	switch {
	case w.told == nil:
		w.cc.ReportError(fmt.Errorf("no server is listed in etcd under %s", strings.TrimSuffix(w.folder, "/")))
	case len(w.told) > 0 && !w.armed:
		w.armed = true
		w.empty.Reset(w.o.emptyAfter)
	}
}

func (w *watcher) update(list []string) {
	w.told = append([]string{}, list...)
	var s resolver.State
	for _, address := range list {
		// The server's certificate must be that of its address: the name of the service is no host.
		s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address, ServerName: address}}})
	}
	_ = w.cc.UpdateState(s) // an empty list is an error, which is what is to be said
}
