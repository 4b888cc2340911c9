package session_test

import (
	"runtime"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/session"
)

// A client that returns no credit while events wait for it shows as stuck, whatever its policy, and no longer when it goes on.
func TestStuckWithoutCredit(t *testing.T) {
	for _, policy := range []runnelv1.OverflowPolicy{runnelv1.OverflowPolicy_OVERFLOW_POLICY_CATCH_UP, runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST} {
		w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 1<<20)
		s := w.session()
		w.subscribe(s, "a.>", latest, session.Options{ID: 1, Credit: 5, Policy: policy, MaxLag: 100})
		take := func(want int) {
			t.Helper()
			for got := 0; got < want; {
				m, err := w.next(s)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range m.GetDeliveries() {
					got += len(d.GetEvents())
				}
			}
		}
		w.publish("a.b", 5)
		take(5)
		if i := s.Info(); i.Stuck != 0 || i.Held != 0 {
			t.Errorf("%v: %+v with nothing to send", policy, i)
		}
		w.publish("a.b", 3)
		for s.Info().Stuck == 0 { // once it has been found out that the credit is used up
			<-s.Ready()
			if err := s.Next(new(session.Frame), 1<<16); err != nil {
				t.Fatal(err)
			}
		}
		for s.Info().Lag < 3 { // the feed brings them in its own time
			runtime.Gosched()
		}
		if i := s.Info(); i.Held != 1 || i.Lag != 3 {
			t.Errorf("%v: %+v", policy, i)
		}
		if most, sum, stuck := s.Lag(); most != 3 || sum != 3 || stuck == 0 || stuck > time.Minute {
			t.Errorf("%v: lag %d of %d, stuck %v", policy, most, sum, stuck)
		}
		s.Credit(1, 10)
		take(3)
		if i := s.Info(); i.Stuck != 0 || i.Held != 0 || i.Lag != 0 {
			t.Errorf("%v: %+v when it goes on", policy, i)
		}
	}
}
