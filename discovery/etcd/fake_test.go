package etcd

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fake is an etcd in memory, for virtual time: as much of one as this package uses, and what can go wrong with it.
type fake struct {
	clientv3.KV
	clientv3.Lease
	clientv3.Watcher

	mu       sync.Mutex
	away     bool
	revision int64
	kvs      map[string]*mvccpb.KeyValue
	watches  []*watch
	leases   map[clientv3.LeaseID]chan *clientv3.LeaseKeepAliveResponse
	last     clientv3.LeaseID
	lists    int // Gets of prefixes
	grants   int
}

type watch struct {
	key, end []byte
	ch       chan clientv3.WatchResponse
}

var errAway = errors.New("away")

func newFake() (*fake, *clientv3.Client) {
	f := &fake{kvs: map[string]*mvccpb.KeyValue{}, leases: map[clientv3.LeaseID]chan *clientv3.LeaseKeepAliveResponse{}, revision: 1}
	c := clientv3.NewCtxClient(context.Background())
	c.KV, c.Lease, c.Watcher = f, f, f
	return f, c
}

func in(key, from, end []byte) bool {
	return bytes.Compare(key, from) >= 0 && (len(end) == 0 && bytes.Equal(key, from) || len(end) > 0 && bytes.Compare(key, end) < 0)
}

func (f *fake) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	op := clientv3.OpGet(key, opts...)
	if len(op.RangeBytes()) > 0 {
		f.lists++
	}
	res := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: f.revision}}
	for _, kv := range f.kvs {
		if in(kv.Key, op.KeyBytes(), op.RangeBytes()) {
			res.Count++
			res.Kvs = append(res.Kvs, kv)
		}
	}
	slices.SortFunc(res.Kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return res, nil
}

func (f *fake) Put(_ context.Context, key, value string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	f.revision++
	f.kvs[key] = &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: f.revision, Lease: int64(f.last)}
	f.notify(&clientv3.Event{Type: clientv3.EventTypePut, Kv: f.kvs[key]})
	return &clientv3.PutResponse{}, nil
}

func (f *fake) notify(e *clientv3.Event) {
	for _, w := range f.watches {
		if in(e.Kv.Key, w.key, w.end) {
			w.ch <- clientv3.WatchResponse{Events: []*clientv3.Event{e}}
		}
	}
}

// drop deletes keys that contain a text.
func (f *fake) drop(part string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropLocked(func(kv *mvccpb.KeyValue) bool { return strings.Contains(string(kv.Key), part) })
}

func (f *fake) dropLocked(which func(*mvccpb.KeyValue) bool) {
	for key, kv := range f.kvs {
		if which(kv) {
			delete(f.kvs, key)
			f.revision++
			f.notify(&clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: f.revision}})
		}
	}
}

func (f *fake) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	f.mu.Lock()
	defer f.mu.Unlock()
	op := clientv3.OpGet(key, opts...)
	w := &watch{op.KeyBytes(), op.RangeBytes(), make(chan clientv3.WatchResponse, 10_000)}
	f.watches = append(f.watches, w)
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.watches = slices.DeleteFunc(f.watches, func(o *watch) bool { return o == w })
	})
	return w.ch
}

// breakWatches ends all watches, because their revision was compacted away.
func (f *fake) breakWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.watches {
		w.ch <- clientv3.WatchResponse{Canceled: true, CompactRevision: f.revision}
		close(w.ch)
	}
	f.watches = nil
}

func (f *fake) set(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// count is how often prefixes were listed since the last time.
func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.lists
	f.lists = 0
	return n
}

func (f *fake) keys() (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, kv := range f.kvs {
		list = append(list, key+" "+string(kv.Value))
	}
	slices.Sort(list)
	return list
}

func (f *fake) Grant(context.Context, int64) (*clientv3.LeaseGrantResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	f.last++
	f.grants++
	f.leases[f.last] = make(chan *clientv3.LeaseKeepAliveResponse)
	return &clientv3.LeaseGrantResponse{ID: f.last}, nil
}

func (f *fake) KeepAlive(_ context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leases[id], nil
}

func (f *fake) Revoke(_ context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return nil, errAway
	}
	if f.leases[id] == nil {
		return nil, rpctypes.ErrLeaseNotFound
	}
	f.endLocked(id)
	return &clientv3.LeaseRevokeResponse{}, nil
}

func (f *fake) endLocked(id clientv3.LeaseID) {
	close(f.leases[id])
	delete(f.leases, id)
	f.dropLocked(func(kv *mvccpb.KeyValue) bool { return kv.Lease == int64(id) })
}

// expire ends all leases.
func (f *fake) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.leases {
		f.endLocked(id)
	}
}

// Close is of both a lease and a watcher.
func (f *fake) Close() error { return nil }
