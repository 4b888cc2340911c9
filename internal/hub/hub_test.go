package hub

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// slowEngine takes its time for one namespace.
type slowEngine struct {
	engine.Engine
	ready chan struct{}
}

func (e *slowEngine) Log(namespace string) (engine.Log, error) {
	if namespace == "slow" {
		<-e.ready
	}
	return emptyLog{name: namespace}, nil
}

// emptyLog has nothing, ever.
type emptyLog struct {
	engine.Log
	name string
}

func (l emptyLog) Namespace() string                { return l.name }
func (l emptyLog) State() engine.State              { return engine.State{} }
func (l emptyLog) Check(engine.Position) error      { return nil }
func (l emptyLog) Tail(uint64) (engine.Tail, error) { return l, nil }
func (l emptyLog) Close()                           {}
func (l emptyLog) Next(ctx context.Context) (engine.Page, error) {
	<-ctx.Done()
	return engine.Page{}, ctx.Err()
}

// A namespace whose log does not open yet, as while it is deleted, holds up no other.
func TestSlowNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &slowEngine{ready: make(chan struct{})}
		h := New(e, Config{})
		defer h.Close()
		opened := make(chan *Feed, 2)
		for range 2 { // they share it all the same
			go func() {
				f, _, err := h.Open(topic.Stored("slow.a").Pattern(), false)
				if err != nil {
					t.Error(err)
				}
				opened <- f
			}()
		}
		synctest.Wait()
		f, _, err := h.Open(topic.Stored("fast.a").Pattern(), false)
		if err != nil {
			t.Fatal(err)
		}
		f.Close(false)
		close(e.ready)
		one, other := <-opened, <-opened
		if one != other {
			t.Error("two feeds of one pattern")
		}
		one.Close(false)
		other.Close(false)
	})
}
