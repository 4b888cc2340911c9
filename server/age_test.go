package server_test

import (
	"slices"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// Sessions that get old are told to move, and where to, and are ended when their notice is over.
func TestStreamAge(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{
		MaxStreamAge: 200 * time.Millisecond, DrainNotice: 100 * time.Millisecond, Endpoints: []string{"a:1", "b:2"}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
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
}
