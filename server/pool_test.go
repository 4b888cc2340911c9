package server_test

import (
	"sync"
	"testing"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A client with more sessions than a connection carries opens further ones before it would have to wait, and closes them again.
func TestManySessions(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{Limits: server.Limits{MaxStreamsPerConnection: 10}, Defaults: server.Namespace{History: "memory"}})
	client := s.Client()
	first, err := client.Session(t.Context()) // its Welcome says how many a connection carries
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 40 {
		group.Go(func() {
			sub, err := client.Subscribe(t.Context(), "a.>")
			if err != nil {
				t.Error(err)
				return
			}
			defer sub.Close()
			if _, err := client.Publish(t.Context(), "a.b", nil); err != nil {
				t.Error(err)
			}
			if _, err := sub.Next(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	addresses := map[string]int{}
	var subs []*runnel.Subscription
	for range 25 {
		sub, err := client.Subscribe(t.Context(), "a.>")
		if err != nil {
			t.Fatal(err)
		}
		subs = append(subs, sub)
	}
	for _, one := range sessions(t, s.Client()) {
		addresses[one.GetAddress()]++
	}
	if len(addresses) < 3 {
		t.Errorf("sessions by connection: %v", addresses)
	}
	for address, n := range addresses {
		if n > 9 { // the tenth is for calls
			t.Errorf("%d sessions share the connection of %s", n, address)
		}
	}
	for _, sub := range subs {
		sub.Close()
	}
	first.Close()
	for range 3 {
		if _, err := client.Publish(t.Context(), "a.b", nil); err != nil {
			t.Error(err)
		}
	}
}
