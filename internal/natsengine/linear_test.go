package natsengine

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// attempt is a conditional append: what it expected, and what it was told.
type attempt struct {
	topic    string
	expected uint64
}

type told struct {
	offset  uint64 // where it is stored; 0: it conflicts
	current uint64 // the newest, where it conflicts
}

// register is what conditional appends of one topic are: compare and set of its newest offset.
var register = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byTopic := map[string][]porcupine.Operation{}
		for _, op := range ops {
			name := op.Input.(attempt).topic
			byTopic[name] = append(byTopic[name], op)
		}
		var list [][]porcupine.Operation
		for _, ops := range byTopic {
			list = append(list, ops)
		}
		return list
	},
	Init: func() any { return uint64(0) },
	Step: func(state, in, out any) (bool, any) {
		newest, a, r := state.(uint64), in.(attempt), out.(told)
		if r.offset > 0 {
			return newest == a.expected && r.offset > newest, r.offset
		}
		return newest == r.current && newest != a.expected, newest
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// The judge itself: of two that expect the same one may win.
func TestRegister(t *testing.T) {
	one := porcupine.Operation{ClientId: 1, Input: attempt{"n.a", 0}, Output: told{offset: 1}, Return: 9}
	two := porcupine.Operation{ClientId: 2, Input: attempt{"n.a", 0}, Output: told{offset: 2}, Return: 9}
	if porcupine.CheckOperations(register, []porcupine.Operation{one, two}) {
		t.Error("both win")
	}
	two.Output = told{current: 1}
	if !porcupine.CheckOperations(register, []porcupine.Operation{one, two}) {
		t.Error("one wins, and the other conflicts")
	}
}

// Conditional appends of three nodes, each at a server of its own, are linearizable while leaders are killed. With RUNNEL_CRASH set
// for minutes.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 3)
	kills := 1
	if os.Getenv("RUNNEL_CRASH") != "" {
		kills = 40
	}
	const topics, clients = 3, 3
	var logs []*log
	for i := range 3 {
		logs = append(logs, logOf(t, open(t, Options{URLs: c.URLs()[i:], Name: fmt.Sprint(i)}), "n"))
	}
	var mu sync.Mutex
	var ops []porcupine.Operation
	var done atomic.Bool
	var stored atomic.Int64
	began := time.Now()
	var group sync.WaitGroup
	for client := range clients * topics {
		l := logs[client%3]
		name := fmt.Sprintf("n.%d", client/clients)
		group.Go(func() {
			newest := uint64(0)
			for n := 0; !done.Load(); n++ {
				en := entry(name, fmt.Sprintf("%d-%d", client, n))
				en.Conditional, en.Expected = true, newest
				op := porcupine.Operation{ClientId: client, Input: attempt{name, newest}, Call: int64(time.Since(began))}
				res, err := l.Append(t.Context(), []engine.Entry{en}, engine.AppendEach)
				for k := 0; err != nil; k++ { // the same again, until its fate is known
					if pause(t.Context(), k) != nil {
						t.Errorf("append: %v", err)
						return
					}
					res, err = l.Append(t.Context(), []engine.Entry{en}, engine.AppendEach)
				}
				op.Return = int64(time.Since(began))
				var conflict *engine.ConflictError
				switch {
				case res[0].Err == nil:
					newest = res[0].Offset
					op.Output = told{offset: newest}
					stored.Add(1)
				case errors.As(res[0].Err, &conflict):
					newest = conflict.Current
					op.Output = told{current: newest}
				default:
					t.Errorf("append: %v", res[0].Err)
					return
				}
				mu.Lock()
				ops = append(ops, op)
				mu.Unlock()
			}
		})
	}
	more := func() {
		before := stored.Load()
		until(t, "appends", func() bool { return stored.Load() >= before+50 })
	}
	for range kills {
		more()
		if i := c.Leader(logs[0].stream); i >= 0 {
			c.Stop(i)
			more()
			c.Start(i)
			c.WaitReady()
		}
	}
	more()
	done.Store(true)
	group.Wait()
	t.Logf("%d appends, %d stored", len(ops), stored.Load())
	if result := porcupine.CheckOperationsTimeout(register, ops, 20*time.Second); result != porcupine.Ok {
		t.Errorf("%d conditional appends are not linearizable: %v", len(ops), result)
	}
}
