package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/discovery/etcd"
	"github.com/runnelhq/runnel/internal/config"
)

// discovery is how the commands find a server, and choose among several.
type discovery struct {
	etcd      string // addresses, separated by commas
	balancing string
}

func (d *discovery) flags(f *pflag.FlagSet) {
	var words []string
	for _, b := range runnel.Balancings() {
		words = append(words, string(b))
	}
	f.StringVar(&d.etcd, "etcd", os.Getenv("RUNNEL_ETCD"), "addresses of etcd, separated by commas, for --server etcd:///SERVICE (RUNNEL_ETCD)")
	f.StringVar(&d.balancing, "balancing", string(runnel.PickFirst), "how to choose among several servers: "+strings.Join(words, ", "))
}

// discovered is how to dial what --server says, with what it takes to find it.
func (a *app) discovered() (opts []runnel.Option, err error) {
	opts = append(opts, runnel.WithBalancing(runnel.Balancing(a.discovery.balancing)))
	if !strings.HasPrefix(a.server, etcd.Scheme+":") {
		return opts, nil
	}
	if a.discovery.etcd == "" {
		return nil, usagef("--server %s needs the addresses of etcd; give them with --etcd or RUNNEL_ETCD", a.server)
	}
	client, err := etcdClient(strings.Split(a.discovery.etcd, ","))
	if err != nil {
		return nil, usagef("--etcd: %w", err)
	}
	a.closing = append(a.closing, func() { client.Close() })
	u, err := url.Parse(a.server)
	if err == nil {
		err = etcd.CheckService(strings.TrimPrefix(u.Path, "/"))
	}
	if err != nil {
		return nil, usagef("bad server address %q: %w", a.server, err)
	}
	return append(opts, runnel.WithResolver(etcd.NewResolver(client))), nil
}

// etcdAnswers bounds what is taken from etcd at once.
const etcdAnswers = 8 << 20

// etcdClient returns a client, without waiting for etcd. It says nothing by itself: what matters is said by whoever uses it.
func etcdClient(endpoints []string) (*clientv3.Client, error) {
	for i := range endpoints {
		if endpoints[i] = strings.TrimSpace(endpoints[i]); endpoints[i] == "" {
			return nil, fmt.Errorf("an address of etcd is empty; write HOST:PORT, with commas between")
		}
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		MaxCallRecvMsgSize: etcdAnswers, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		})},
	})
}

// announcer lists a server in etcd; nil if it is not to be. close must be called in the end.
func announcer(ctx context.Context, e config.Etcd, logger *slog.Logger) (announce func(string) func(), done func(), err error) {
	if e.Service == "" {
		return nil, func() {}, nil
	}
	client, err := etcdClient(e.Endpoints)
	if err != nil {
		return nil, nil, usagef("discovery.etcd.endpoints: %w", err)
	}
	// What is listed is withdrawn by the server, when it stops, and not by what makes it stop.
	ctx = context.WithoutCancel(ctx)
	return func(address string) func() {
		r, err := etcd.Register(ctx, client, e.Service, address, etcd.WithLogger(logger))
		if err != nil {
			logger.Error("the server is not listed in etcd", "err", err)
			return func() {}
		}
		return r.Close
	}, func() { client.Close() }, nil
}
