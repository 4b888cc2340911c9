package natsengine

import "time"

const (
	// badFor is how long JetStream may leave a connection without an answer before the connection goes to another server. Changes of
	// leader take less, mostly.
	badFor = 6 * time.Second
	// scoutEvery is how often one connection looks elsewhere while none has answers.
	scoutEvery = 15 * time.Second
)

// heard notes whether JetStream has answered what was asked over the connection.
func (l *link) heard(ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ok:
		l.good, l.bad = time.Now(), time.Time{}
	case l.bad.IsZero():
		l.bad = time.Now()
	}
}

// move connects to another server, if there is one.
func (l *link) move() {
	l.mu.Lock()
	l.bad = time.Time{}
	l.mu.Unlock()
	_ = l.nc.ForceReconnect() // fails only if the connection is closed
}

// state says since when there was no answer (zero: there was one), and when there was one.
func (l *link) state() (bad, good time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad, l.good
}

// mind looks after the connections until the engine is closed. A server that is cut off from the others keeps its clients, and they wait
// with it: a connection that has no answers, where others have, goes to another server. Where none has, one goes and looks.
func (e *Engine) mind() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	links := append([]*link{e.write, e.feed}, e.reads[:]...)
	scouted := time.Now()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-e.ctx.Done():
			return
		}
		var waiting []*link
		works := false
		for _, l := range links {
			bad, good := l.state()
			works = works || bad.IsZero() && time.Since(good) < badFor
			if l.up() && !bad.IsZero() && time.Since(bad) > badFor {
				waiting = append(waiting, l)
			}
		}
		switch {
		case len(waiting) == 0:
		case works:
			for _, l := range waiting {
				e.o.Logger.Warn("JetStream does not answer over a connection and does over others: it goes to another server", "server", l.nc.ConnectedServerName())
				l.move()
			}
		case time.Since(scouted) > scoutEvery:
			scouted = time.Now()
			n++
			e.reads[n%readers].move()
		}
	}
}
