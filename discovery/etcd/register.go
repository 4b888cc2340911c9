package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Registration keeps a server listed. Its methods are safe for concurrent use.
type Registration struct {
	client *clientv3.Client
	o      options
	key    string
	value  string

	stop  context.CancelFunc
	group sync.WaitGroup
	first chan struct{} // closed when the server is listed for the first time

	// Owned by run.
	trouble bool // it was logged that something is wrong
}

// Register lists a server, by the address that clients reach, until Close is called or ctx ends. It does not wait for etcd: where it cannot be
// reached, or forgets the server, Register tries until it can, so that a server starts and goes on without it. The client should reconnect
// soon: grpc.ConnectParams with a MaxDelay of seconds, in its DialOptions. An error means that the service, the address or an option is not
// understood.
func Register(ctx context.Context, client *clientv3.Client, service, address string, opts ...Option) (*Registration, error) {
	o := newOptions(opts)
	folder, err := o.folder(service)
	if err != nil {
		return nil, err
	}
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	if o.ttl < time.Second {
		return nil, fmt.Errorf("a TTL of %v is less than a second", o.ttl)
	}
	value, err := json.Marshal(entry{address})
	if err != nil {
		return nil, err
	}
	// A server that comes back at its address takes over its key, so that it is never there twice.
	r := &Registration{client: client, o: o, key: folder + address, value: string(value), first: make(chan struct{})}
	ctx, r.stop = context.WithCancel(ctx)
	r.group.Go(func() { r.run(ctx) })
	return r, nil
}

// Wait returns when the server is listed for the first time, or ctx ends.
func (r *Registration) Wait(ctx context.Context) error {
	select {
	case <-r.first:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close takes the server off the list and returns when it is off, or after 2 s: then it goes away by itself within the TTL.
func (r *Registration) Close() {
	r.stop()
	r.group.Wait()
}

// withdrawTimeout is short, because a server that stops waits for it.
const withdrawTimeout = 2 * time.Second

func (r *Registration) run(ctx context.Context) {
	// An etcd that comes back gives old leases their whole time again: well within it the server has a new one.
	b := backoff{most: r.o.ttl / 4}
	for {
		lease, err := r.list(ctx)
		if err == nil {
			b.reset()
			err = r.keep(ctx, lease)
		}
		if ctx.Err() != nil {
			r.withdraw(lease)
			return
		}
		if !r.trouble {
			r.trouble = true
			r.o.logger.Warn("the server is not listed in etcd; trying on", "key", r.key, "err", err)
		}
		if errors.Is(err, errExpired) {
			lease = clientv3.NoLease // there is nothing left of it
		}
		if !b.wait(ctx) {
			r.withdraw(lease)
			return
		}
	}
}

// list lists the server on a lease of its own.
func (r *Registration) list(ctx context.Context) (clientv3.LeaseID, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	grant, err := r.client.Grant(call, int64((r.o.ttl+time.Second-1)/time.Second))
	if err != nil {
		return clientv3.NoLease, err
	}
	if _, err := r.client.Put(call, r.key, r.value, clientv3.WithLease(grant.ID)); err != nil {
		return grant.ID, err
	}
	if r.trouble {
		r.trouble = false
		r.o.logger.Info("the server is listed in etcd again", "key", r.key)
	}
	select {
	case <-r.first:
	default:
		close(r.first)
	}
	return grant.ID, nil
}

var (
	errExpired = errors.New("the lease has expired")
	errDeleted = errors.New("somebody has deleted the key")
)

// keep renews the lease until it is lost, the key is gone, or ctx ends.
func (r *Registration) keep(ctx context.Context, lease clientv3.LeaseID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	renewed, err := r.client.KeepAlive(ctx, lease)
	if err != nil {
		return err
	}
	look := time.NewTicker(r.o.ttl)
	defer look.Stop()
	for {
		select {
		case _, ok := <-renewed:
			if !ok {
				return errExpired
			}
		case <-look.C:
			call, stop := context.WithTimeout(ctx, callTimeout)
			res, err := r.client.Get(call, r.key, clientv3.WithCountOnly())
			stop()
			if err == nil && res.Count == 0 {
				return errDeleted
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// withdraw takes the server off the list, unless it has come back on another lease meanwhile.
func (r *Registration) withdraw(lease clientv3.LeaseID) {
	if lease == clientv3.NoLease {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), withdrawTimeout)
	defer cancel()
	if _, err := r.client.Revoke(ctx, lease); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		r.o.logger.Warn("the server could not be taken off the list in etcd; it goes away by itself", "key", r.key, "within", r.o.ttl, "err", err)
	}
}
