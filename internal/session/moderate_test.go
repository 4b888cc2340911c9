package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnelhq/runnel/internal/budget"
)

// Pages that move make others wait until they have moved; pages that do not make them wait once.
func TestReplayIsModerate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := budget.New(1<<30), NewReplayer()
		waits := func(want time.Duration, what string) {
			t.Helper()
			began := time.Now()
			if err := r.moderate(t.Context(), b); err != nil || time.Since(began) != want {
				t.Errorf("%s: waited %v, want %v (%v)", what, time.Since(began), want, err)
			}
		}
		waits(0, "nothing is on its way")
		b.Force(budget.Pages, paceBytes)
		time.AfterFunc(5*paceEvery/2, func() { b.Give(budget.Pages, 1) })
		waits(3*paceEvery, "a page leaves")
		b.Force(budget.Pages, 10<<20)
		waits(paceMost, "nothing moves")
		waits(0, "what does not move counts no longer")
		b.Force(budget.Pages, paceBytes)
		waits(paceMost, "more that does not move")
		b.Give(budget.Pages, 10<<20)
		waits(0, "it moves after all")
		b.Force(budget.Pages, paceBytes)
		waits(paceMost, "and counts again")
	})
}
