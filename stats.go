package runnel

import "sync/atomic"

// ClientStats is what a client has done and holds, all its sessions together. Package prometheus makes metrics of it.
type ClientStats struct {
	// Now.
	Connecting, Live, Behind, Offline int // sessions that are not over, by state
	Connections                       int // to servers, whether they stand or are being made
	Unacknowledged                    int // publishes of sessions that wait for their acknowledgement
	UnacknowledgedBytes               int // their payloads

	// Since Dial.
	Opened   uint64 // streams of sessions that a server has welcomed
	Broken   uint64 // of those, that ended before their session did, so that it had to come back
	Moved    uint64 // of those, that took the place of one that a server had asked to move
	Calls    uint64 // unary calls, each with its retries
	Retries  uint64 // of calls, also those that were rejected
	Denied   uint64 // retries that there was no budget for
	Rejected uint64 // attempts that the circuit breaker kept from a server that did not answer

	Published  uint64 // events that were acknowledged, one by one or by sessions
	Duplicates uint64 // of those, that had been stored before
	Failed     uint64 // events that were not, and will not be
	Received   uint64 // events, each once
	Dropped    uint64 // as Stats.Dropped, of all subscriptions
	Conflated  uint64
	Gaps       uint64
}

// counts are the counters of a ClientStats.
type counts struct {
	opened, broken, moved, calls, retries, denied, rejected, published, duplicates, failed, received, dropped, conflated, gaps atomic.Uint64
}

// acknowledged counts what became of a publish.
func (n *counts) acknowledged(ack Ack, err error) {
	switch {
	case err != nil:
		n.failed.Add(1)
		return
	case ack.Duplicate:
		n.duplicates.Add(1)
	}
	n.published.Add(1)
}

func (n *counts) noticed(kind string, events uint64) {
	switch kind {
	case "DROPPED":
		n.dropped.Add(events)
	case "CONFLATED":
		n.conflated.Add(events)
	case "GAP":
		n.gaps.Add(1)
	}
}

// Stats is what the client has done so far and holds now. It is cheap: a lock for each session.
func (c *Client) Stats() ClientStats {
	n := &c.counts
	s := ClientStats{
		Opened: n.opened.Load(), Broken: n.broken.Load(), Moved: n.moved.Load(),
		Calls: n.calls.Load(), Retries: n.retries.Load(), Denied: n.denied.Load(), Rejected: n.rejected.Load(),
		Published: n.published.Load(), Duplicates: n.duplicates.Load(), Failed: n.failed.Load(),
		Received: n.received.Load(), Dropped: n.dropped.Load(), Conflated: n.conflated.Load(), Gaps: n.gaps.Load(),
	}
	c.mu.Lock()
	sessions := make([]*Session, 0, len(c.sessions))
	for one, state := range c.sessions {
		sessions = append(sessions, one)
		switch state {
		case StateConnecting:
			s.Connecting++
		case StateLive:
			s.Live++
		case StateBehind:
			s.Behind++
		case StateOffline:
			s.Offline++
		}
	}
	s.Connections = 1 + len(c.link.more)
	c.mu.Unlock()
	for _, one := range sessions {
		one.mu.Lock()
		s.Unacknowledged += len(one.unacked)
		s.UnacknowledgedBytes += one.bytes
		one.mu.Unlock()
	}
	return s
}

// stands notes the state of a session.
func (c *Client) stands(s *Session, now State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions == nil {
		c.sessions = map[*Session]State{}
	}
	c.sessions[s] = now
}

// forget is for a session that is over.
func (c *Client) forget(s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, s)
}
