package natsengine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/engine/enginetest"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// The suite that every engine must pass, on a cluster of three.
func TestConformance(t *testing.T) {
	enginetest.Run(t, factory(natstest.New(t, 3), 3, engine.HistoryDisk, engine.HistoryMemory, engine.HistoryNone))
}

// The same on one server.
func TestConformanceOneServer(t *testing.T) {
	enginetest.Run(t, factory(natstest.New(t, 1), 1, engine.HistoryDisk, engine.HistoryNone))
}

var prefixes atomic.Int64

// factory makes storage of a cluster: each has streams and subjects of its own.
func factory(c *natstest.Cluster, replicas int, histories ...engine.History) enginetest.Factory {
	return enginetest.Factory{
		Histories: histories, External: true, IDsByWindow: true, Leaks: leaks,
		Durability: func(h engine.History) runnelv1.Durability {
			o := Options{Replicas: replicas}
			return o.durability(h)
		},
		Storage: func(t enginetest.TB) enginetest.Storage {
			prefix := fmt.Sprintf("t%d", prefixes.Add(1))
			opened := false
			return enginetest.Storage{Open: func(o enginetest.Options) (engine.Engine, error) {
				if !opened {
					opened = true
					t.Cleanup(func() { deleteStreams(t, c, prefix) })
				}
				return Open(Options{URLs: c.URLs(), Replicas: replicas, Prefix: prefix, Namespace: o.Namespace, Logger: logger()})
			}}
		},
	}
}

// deleteStreams deletes the streams of a prefix, so that a cluster serves many cases.
func deleteStreams(t enginetest.TB, c *natstest.Cluster, prefix string) {
	nc, err := nats.Connect(strings.Join(c.URLs(), ","))
	if err != nil {
		t.Errorf("connect: %v", err)
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		if strings.HasPrefix(name, prefix+"_") {
			if err := js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				t.Errorf("delete stream %s: %v", name, err)
			}
		}
	}
}

// leaks finds goroutines of the engine or of its connections. The servers in this process have goroutines that come and go.
func leaks() error {
	buf := make([]byte, 4<<20)
	var found string
	for range 200 {
		found = ""
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "runnel/internal/natsengine.") && !strings.Contains(g, "natsengine.leaks") && !strings.Contains(g, "testing.tRunner") || strings.Contains(g, "nats-io/nats%2ego") || strings.Contains(g, "nats-io/nats.go.") {
				found = g
			}
		}
		if found == "" {
			return nil
		}
		time.Sleep(5 * time.Millisecond) // nothing announces the end of a goroutine
	}
	return errors.New(found)
}
