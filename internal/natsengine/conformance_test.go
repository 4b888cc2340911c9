package natsengine

import (
	"context"
	"errors"
	"fmt"
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
	t.Parallel()
	enginetest.Run(t, factory(natstest.New(t, 3), 3, engine.HistoryDisk, engine.HistoryMemory, engine.HistoryNone))
}

// The same on one server.
func TestConformanceOneServer(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, factory(natstest.New(t, 1), 1, engine.HistoryDisk, engine.HistoryNone))
}

var prefixes atomic.Int64

// factory makes storage of a cluster: each has streams and subjects of its own. What engines leave running TestMain finds: suites run beside
// each other.
func factory(c *natstest.Cluster, replicas int, histories ...engine.History) enginetest.Factory {
	return enginetest.Factory{
		Histories: histories, External: true, IDsByWindow: true, Leaks: func() error { return nil },
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
				e, err := Open(Options{URLs: c.URLs(), Replicas: replicas, Prefix: prefix, Namespace: o.Namespace, Logger: logger()})
				if err == nil {
					e.aheadWait = 50 * time.Millisecond // the suite looks at hundreds of positions from the future
				}
				return e, err
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
