package session_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/session"
)

// Thousands of subscriptions take turns, share frames, and none is forgotten, whatever size the frames have.
func TestManySubscriptionsTakeTurns(t *testing.T) {
	const n = 3000
	for _, size := range []int{100, 4 << 10, 64 << 10} {
		w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 1<<20)
		s := newSession(t, session.Config{MaxSubscriptions: n, Heartbeat: 15 * time.Second, SendTimeout: time.Minute, Replayer: w.replayer})
		for i := range n {
			w.subscribe(s, fmt.Sprintf("a.t%d", i), latest, session.Options{})
		}
		for i := range n {
			w.publish(fmt.Sprintf("a.t%d", i), 2)
		}
		seen := map[uint32]int{}
		var f session.Frame
		for total := 0; total < 2*n; {
			if err := s.Next(&f, size); err != nil {
				t.Fatal(err)
			}
			if f.Bytes == 0 {
				select {
				case <-s.Ready():
				case <-time.After(10 * time.Second):
					t.Fatalf("frames of %d: %d of %d events came", size, total, 2*n)
				}
				continue
			}
			var b []byte
			for _, slice := range f.Slices {
				b = append(b, slice...)
			}
			m := new(runnelv1.StreamResponse)
			if err := proto.Unmarshal(b, m); err != nil {
				t.Fatal(err)
			}
			f.Release()
			s.Sent()
			for _, d := range m.GetDeliveries() {
				seen[d.GetSubscription()] += len(d.GetEvents())
				total += len(d.GetEvents())
			}
		}
		for i := range n {
			if seen[uint32(i+1)] != 2 {
				t.Fatalf("subscription %d got %d events", i+1, seen[uint32(i+1)])
			}
		}
	}
}
