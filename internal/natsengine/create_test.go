package natsengine

import (
	"fmt"
	"sync"
	"testing"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// Nodes that open a namespace at the same moment, which is new, have one stream for it: a server looks for overlapping subjects before it makes
// a stream, but not at the same moment.
func TestOneStream(t *testing.T) {
	t.Parallel()
	for size, rounds := range map[int]int{1: 40, 3: 4} {
		c := natstest.New(t, size)
		var nodes []*Engine
		for i := range 4 {
			nodes = append(nodes, open(t, Options{URLs: c.URLs(), Replicas: size, Name: fmt.Sprint(i)}))
		}
		for round := range rounds {
			name := fmt.Sprint("n", round)
			logs := make([]*log, len(nodes))
			start := make(chan struct{})
			var group sync.WaitGroup
			for i, e := range nodes {
				group.Go(func() {
					<-start
					l, err := e.Log(name)
					if err != nil {
						t.Errorf("%d servers: %v", size, err)
						return
					}
					logs[i] = l.(*log)
				})
			}
			close(start)
			group.Wait()
			if t.Failed() {
				return
			}
			for i, l := range logs {
				if l.stream != logs[0].stream {
					t.Errorf("%d servers, %s: node %d has stream %s, and node 0 has %s", size, name, i, l.stream, logs[0].stream)
				}
			}
			put(t, logs[3], entry(name+".a", "1"))
			if err := logs[0].await(t.Context(), 1); err != nil {
				t.Error(err)
			}
		}
	}
}

// A node that dies while it makes a stream holds the others up for a moment only.
func TestStaleLock(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	dead, e := open(t, Options{URLs: c.URLs(), Replicas: 1}), open(t, Options{URLs: c.URLs(), Replicas: 1})
	e.lockLife = 0
	if _, err := dead.lock(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	put(t, logOf(t, e, "n"), entry("n.a", "1"))
	if _, err := dead.Log("n"); err != nil {
		t.Error(err)
	}
}
