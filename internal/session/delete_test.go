package session_test

import (
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/session"
)

// Of a session's subscriptions those end whose namespace was deleted, live or behind, once each; the others go on, and whoever comes then
// follows the next log.
func TestDeletedNamespace(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 0)
	s := newSession(t, session.Config{
		MaxSubscriptions: 100, Heartbeat: 15 * time.Second, SendTimeout: 30 * time.Second, Replayer: w.replayer,
		Status: func(err error) *status.Status { return &status.Status{Message: err.Error()} },
	})
	other, err := w.engine.Log("b")
	if err != nil {
		t.Fatal(err)
	}
	w.publish("a.b", 50)
	released := make(chan struct{}, 10)
	release := func() { released <- struct{}{} }
	w.subscribe(s, "a.>", latest, session.Options{ID: 1, Release: release})
	w.subscribe(s, "a.b", 0, session.Options{ID: 2, Credit: 3, Release: release})
	w.subscribe(s, "a.b", latest, session.Options{ID: 3, Policy: runnelv1.OverflowPolicy_OVERFLOW_POLICY_CONFLATE, Release: release})
	w.subscribe(s, "b.>", latest, session.Options{ID: 4})
	if err := w.engine.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.subscribe(s, "a.>", latest, session.Options{ID: 5})
	s.Credit(2, 100)
	ended, delivered := map[uint32]bool{}, map[uint32]int{}
	look := func() {
		m, err := w.next(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.GetControls() {
			if u := c.GetUnsubscribed(); u != nil {
				if ended[u.GetSubscription()] || u.GetStatus().GetMessage() != (&engine.EpochChangedError{}).Error() {
					t.Errorf("%v", u)
				}
				ended[u.GetSubscription()] = true
			}
		}
		for _, d := range m.GetDeliveries() {
			if ended[d.GetSubscription()] {
				t.Errorf("events of subscription %d behind its end", d.GetSubscription())
			}
			delivered[d.GetSubscription()] += len(d.GetEvents())
		}
	}
	for len(ended) < 3 {
		look()
	}
	for range 3 {
		<-released
	}
	if w.log, err = w.engine.Log("a"); err != nil {
		t.Fatal(err)
	}
	w.publish("a.b", 2)
	w.log = other
	w.publish("b.b", 2)
	for delivered[4] < 2 || delivered[5] < 2 {
		look()
	}
	if ended[4] || ended[5] || s.Err() != nil {
		t.Errorf("ended %v, the session: %v", ended, s.Err())
	}
}
