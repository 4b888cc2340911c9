package server_test

import (
	"runtime"
	"testing"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A session that began when a server had few is told when it has many: then all take longer to go elsewhere if it dies.
func TestSpreadIsToldAgain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // 3 ms for each
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
	stream, err := newClients(t, s.Addr).EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	welcomed := uint32(0)
	if err := control(stream, func(c *runnelv1.Control) bool { welcomed = c.GetWelcome().GetSpreadMs(); return c.GetWelcome() != nil }); err != nil || welcomed != 2003 {
		t.Fatalf("%d ms, %v", welcomed, err)
	}
	client, err := runnel.Dial(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 400 {
		if _, err := client.Session(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	later := uint32(0)
	if err := control(stream, func(c *runnelv1.Control) bool { later = c.GetHeartbeat().GetSpreadMs(); return later > 0 }); err != nil || later < 3000 || later > 3203 {
		t.Errorf("%d ms, %v", later, err)
	}
}
