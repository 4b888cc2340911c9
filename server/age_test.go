package server_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// Sessions that get old are told to move, and where to; the SDK comes back, and the application notices nothing.
func TestStreamAge(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{
		MaxStreamAge: 200 * time.Millisecond, Endpoints: []string{"a:1", "b:2"}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
	})
	c := newClients(t, s.Addr)
	stream, err := c.EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var told [][]string
	err = control(stream, func(c *runnelv1.Control) bool {
		if w := c.GetWelcome(); w != nil {
			told = append(told, w.GetEndpoints())
		}
		if d := c.GetDrain(); d != nil {
			told = append(told, d.GetEndpoints())
		}
		return false
	})
	if want := []string{"a:1", "b:2"}; reason(err) != "STREAM_AGE" || len(told) != 2 || !slices.Equal(told[0], want) || !slices.Equal(told[1], want) {
		t.Errorf("told %v, then %v", told, err)
	}
	var connected atomic.Int64
	client := s.Client()
	session, err := client.Session(t.Context(), runnel.OnState(func(s runnel.State) {
		if s == runnel.StateLive {
			connected.Add(1)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := session.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := client.Publish(t.Context(), "a.b", []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(i) {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
		time.Sleep(20 * time.Millisecond) // streams take real time to age
	}
	if connected.Load() < 3 {
		t.Errorf("connected %d times", connected.Load())
	}
}
