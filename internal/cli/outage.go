package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/runnelhq/runnel"
)

// patience is how long a server that was there may be away until bounded work gives up. It is well below the 2 minutes for
// which servers remember event ids by default, so that what is sent again in that time cannot be stored twice.
const patience = time.Minute

// outage says on stderr when the connection of a session breaks, and when it is back. With giveUp it ends the work of a session
// that is away for longer than patience; without, the session tries for ever.
func (a *app) outage(giveUp context.CancelCauseFunc) runnel.SessionOption {
	var (
		was, away bool // connected at all; connected no more
		limit     *time.Timer
	)
	start := "runnel: "
	if isTerminal(a.err) {
		start = "\r\x1b[K" + start // a progress line may be there
	}
	say := func(format string, args ...any) { fmt.Fprintf(a.err, start+format+"\n", args...) }
	// The session calls it from one goroutine.
	return runnel.OnState(func(s runnel.State) {
		switch {
		case s == runnel.StateLive && away:
			away = false
			if limit != nil {
				limit.Stop()
			}
			say("connected to %s again", a.server)
		case s == runnel.StateLive:
			was = true
		case s == runnel.StateConnecting && was && !away:
			away = true
			say("the connection to %s broke; trying again", a.server)
			if giveUp != nil {
				limit = time.AfterFunc(patience, func() {
					giveUp(fmt.Errorf("the server at %s was away for %v; see whether it runs, and start again", a.server, patience))
				})
			}
		}
	})
}
