package etcd_test

import (
	"context"
	"log"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/discovery/etcd"
	"github.com/runnelhq/runnel/server"
)

func ExampleNewResolver() {
	cluster, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	client, err := runnel.Dial("etcd:///quotes", runnel.WithResolver(etcd.NewResolver(cluster)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

// A server inside a program is listed while it serves, and taken off the list before it tells its sessions to move.
func ExampleRegister() {
	cluster, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	s, err := server.New(server.Config{
		Dev: true,
		Announce: func(address string) (withdraw func()) {
			r, err := etcd.Register(context.Background(), cluster, "quotes", address)
			if err != nil {
				log.Fatal(err)
			}
			return r.Close
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := s.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
