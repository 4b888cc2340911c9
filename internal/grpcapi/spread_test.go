package grpcapi

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/session"
)

// Many sessions are told a new time one part after the other, and each once: a server that has got many has little to spare.
func TestSessionsAreToldAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		part := int64(spreadPart * runtime.GOMAXPROCS(0))
		many := 20*part + 1
		s := New(broker.New(nil, nil, broker.Config{MaxSubscriptions: 1}), session.NewReplayer(), Config{
			Heartbeat: time.Hour, SendTimeout: time.Hour, Budget: budget.New(1 << 30),
		})
		var told atomic.Int64
		for range many {
			one, err := s.open(false, func() { told.Add(1) })
			if err != nil {
				t.Fatal(err)
			}
			s.known(one, &stream{})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.spreads(ctx) })
		time.Sleep(spreadEvery + tellEvery/2)
		most := int64(0)
		for before := told.Load(); told.Load() < many; before = told.Load() {
			time.Sleep(tellEvery)
			n := told.Load() - before
			if most = max(most, n); n == 0 {
				t.Fatalf("%d of %d are told", told.Load(), many)
			}
		}
		if most > part {
			t.Errorf("%d at once, want at most %d", most, part)
		}
		time.Sleep(10 * spreadEvery)
		if n := told.Load(); n != many {
			t.Errorf("told %d times, want %d", n, many)
		}
		cancel()
		running.Wait()
	})
}
