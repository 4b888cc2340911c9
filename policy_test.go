package runnel_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// Every policy accounts for every event, as the application sees it: what was published was handed over, dropped or conflated.
func TestStatsAddUp(t *testing.T) {
	const events = 5000
	for _, history := range []string{"none", "memory"} {
		s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: history}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := s.Client()
		for _, policy := range []runnel.Policy{runnel.DropOldest, runnel.Conflate} {
			topic := fmt.Sprintf("a.t%d", policy)
			var notices []runnel.Notice
			sub, err := c.Subscribe(ctx, topic, runnel.Overflow(policy), runnel.MaxLag(50), runnel.Credit(100),
				runnel.OnNotice(func(n runnel.Notice) { notices = append(notices, n) }))
			if err != nil {
				t.Fatal(err)
			}
			up, err := c.Upload(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range events {
				if err := up.Send(topic, []byte("x"), runnel.Key(fmt.Sprint(i%10))); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := up.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(400 * time.Millisecond) // reading nothing is what makes it slow
			for total := uint64(0); total < events; {
				if _, err := sub.Next(ctx); err != nil {
					t.Fatalf("%v, %s: %v at %+v", policy, history, err, sub.Stats())
				}
				st := sub.Stats()
				total = st.Delivered + st.Dropped + st.Conflated
				if total > events || st.Gaps > 0 {
					t.Fatalf("%v, %s: %+v", policy, history, st)
				}
			}
			st := sub.Stats()
			if skipped := st.Dropped + st.Conflated; skipped == 0 || len(notices) == 0 || (policy == runnel.Conflate) != (st.Conflated > 0) {
				t.Errorf("%v, %s: %+v, %d notices", policy, history, st, len(notices))
			}
			sub.Close()
		}
	}
}

// Without OnNotice a loss is yielded and the subscription goes on; what is only conflated is not a loss.
func TestLossesAreYielded(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory", MaxEvents: 10}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := s.Client()
	sub, err := c.Subscribe(ctx, "a.b", runnel.Credit(5))
	if err != nil {
		t.Fatal(err)
	}
	const events = 20_000 // more than the server's memory of recent events holds
	up, err := c.Upload(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range events {
		if err := up.Send("a.b", make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := up.Close(); err != nil {
		t.Fatal(err)
	}
	gaps := 0
	for at := uint64(0); at < events; {
		e, err := sub.Next(ctx)
		var lost *runnel.Error
		switch {
		case errors.As(err, &lost) && !lost.Terminal() && lost.Notice.Kind == "GAP":
			gaps++
			at = lost.Notice.To
		case err != nil:
			t.Fatal(err)
		default:
			at = e.Position.Offset
		}
	}
	if st := sub.Stats(); gaps == 0 || st.Gaps != uint64(gaps) {
		t.Errorf("%d gaps were yielded, %+v", gaps, st)
	}
}
