package natsengine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

const (
	heartbeat = 500 * time.Millisecond
	// silence is how long a consumer may say nothing before it is given up.
	silence = 3 * heartbeat
	// feedEvents is how many events are taken in at once.
	feedEvents = 512
	// forgotten is how long NATS keeps a consumer that nobody listens to.
	forgotten = 30 * time.Second
)

// Headers of messages, none of which comes from a user: those are inside the body.
const (
	headerID       = "Nats-Msg-Id"
	headerExpected = "Nats-Expected-Last-Subject-Sequence"
	headerStream   = "Nats-Expected-Stream" // what was meant for a stream that is gone is not stored in the next one
	headerName     = "Runnel-Append"        // names one append, over all its attempts; absent where headerID is the name
	headerBatch    = "Nats-Batch-Id"
	headerSequence = "Nats-Batch-Sequence"
	headerCommit   = "Nats-Batch-Commit"
)

// nameOf is the name of the append that stored a message.
func nameOf(h nats.Header) string {
	if name := first(h, headerName); name != "" {
		return name
	}
	return first(h, headerID)
}

// idOf is what stands for an event's id; empty if it has none that counts.
func idOf(h nats.Header) string {
	if first(h, headerName) == "" {
		return "" // the header holds a name
	}
	return first(h, headerID)
}

// first is a header's value. Ours are spelled as they are looked for, so nothing need be made canonical.
func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// follow feeds the log from its stream until the engine is closed or the stream is gone.
func (l *log) follow() {
	ctx := l.ctx
	for failures := 0; ctx.Err() == nil; failures++ {
		before := l.State().Head
		err := l.followOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if l.State().Head != before {
			failures = 0
		}
		if failures == 0 && !errors.Is(err, errSilent) && !errors.Is(err, errGap) {
			l.e.o.Logger.Warn("cannot follow the stream", "namespace", l.name, "error", oneLine(err))
		}
		_ = pause(ctx, failures) // the loop looks at ctx
	}
}

// errGap: the consumer skipped something, as it may after a change of leader.
var errGap = errors.New("a message is missing")

// followOnce makes a consumer from behind head on and takes in what it brings, until something is wrong with it.
func (l *log) followOnce(ctx context.Context) error {
	i, err := l.e.info(ctx, l.stream, nil)
	if isCode(err, codeStreamNotFound) {
		l.endIfGone(ctx)
	}
	if err != nil {
		return err
	}
	l.learn(i)
	feed := l.e.feed
	inbox := nats.NewInbox()
	sub, err := feed.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer feed.unsubscribe(sub)
	if err := sub.SetPendingLimits(-1, receiveBytes); err != nil {
		return err
	}
	head := l.State().Head
	name, err := l.consume(ctx, inbox, head+1)
	if err != nil {
		return err
	}
	defer l.endConsumer(name)
	return l.receive(ctx, sub)
}

// consume makes an ordered consumer: one replica, in memory, without acknowledgements, numbered so that a gap shows.
func (l *log) consume(ctx context.Context, inbox string, from uint64) (name string, err error) {
	type config struct {
		Name           string        `json:"name"`
		DeliverSubject string        `json:"deliver_subject"`
		DeliverPolicy  string        `json:"deliver_policy"`
		Start          uint64        `json:"opt_start_seq"`
		AckPolicy      string        `json:"ack_policy"`
		MaxDeliver     int           `json:"max_deliver"`
		FlowControl    bool          `json:"flow_control"`
		Heartbeat      time.Duration `json:"idle_heartbeat"`
		Inactive       time.Duration `json:"inactive_threshold"`
		Memory         bool          `json:"mem_storage"`
		Replicas       int           `json:"num_replicas"`
	}
	name = "runnel-" + newEpoch()
	request := struct {
		Stream string `json:"stream_name"`
		Config config `json:"config"`
		Action string `json:"action"`
	}{l.stream, config{
		name, inbox, "by_start_sequence", from, "none", 1, true, heartbeat, forgotten, true, 1,
	}, "create"}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	// Over the connection that listens, so that NATS hears of the subscription first.
	err = l.e.feed.api(ctx, setupWait, "CONSUMER.CREATE."+l.stream+"."+name, request, &answer)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	return name, err
}

// endConsumer tells NATS that a consumer is over. If it does not hear, it finds out by itself.
func (l *log) endConsumer(name string) {
	_ = l.e.feed.nc.Publish("$JS.API.CONSUMER.DELETE."+l.stream+"."+name, nil)
}

// receive takes in what a consumer brings.
func (l *log) receive(ctx context.Context, sub *nats.Subscription) error {
	epoch := l.State().Epoch
	last := uint64(0) // of the consumer's own numbers
	events := make([]stored, 0, feedEvents)
	for {
		m, err := nextMessage(ctx, sub, silence)
		if err != nil {
			return err
		}
		for events = events[:0]; m != nil; {
			if status := first(m.Header, "Status"); status != "" {
				if err := l.control(m, last); err != nil {
					l.apply(events, epoch)
					return err
				}
			} else {
				meta, err := m.Metadata()
				if err != nil {
					return fmt.Errorf("not from a consumer: %w", err)
				}
				if meta.Sequence.Consumer != last+1 {
					l.apply(events, epoch)
					return errGap
				}
				last++
				events = append(events, stored{meta.Sequence.Stream, meta.Timestamp.UnixMilli(), nameOf(m.Header), idOf(m.Header), m.Data})
			}
			m = nil
			if n, _, _ := sub.Pending(); n > 0 && len(events) < feedEvents {
				if m, err = sub.NextMsg(silence); err != nil {
					m = nil
				}
			}
		}
		if !l.apply(events, epoch) {
			return errGap // the log has a new epoch: begin anew
		}
	}
}

func nextMessage(ctx context.Context, sub *nats.Subscription, wait time.Duration) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	m, err := sub.NextMsgWithContext(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, errSilent
	}
	return m, err
}

// control deals with heartbeats and flow control.
func (l *log) control(m *nats.Msg, last uint64) error {
	if first(m.Header, "Status") != "100" {
		return fmt.Errorf("the consumer is over: %s", first(m.Header, "Description"))
	}
	if m.Reply != "" { // it waits until we have come this far
		return m.Respond(nil)
	}
	if stalled := first(m.Header, "Nats-Consumer-Stalled"); stalled != "" {
		if err := l.e.feed.nc.Publish(stalled, nil); err != nil {
			return err
		}
	}
	if sent, err := strconv.ParseUint(first(m.Header, "Nats-Last-Consumer"), 10, 64); err == nil && sent != last {
		return errGap
	}
	return nil
}

// stored is a message of a stream.
type stored struct {
	offset uint64
	time   int64
	name   string
	id     string // hashID of the event's id; empty: it has none that counts
	body   []byte
}

// apply takes in messages, which rise in offset: head moves, tails wake, and appends learn what became of them. False: they are
// of another epoch.
func (l *log) apply(list []stored, epoch string) bool {
	events := make([]engine.Event, 0, len(list))
	var last topic.Name
	for _, s := range list {
		ev, ok := s.event(&last)
		if ok {
			events = append(events, ev)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch != epoch || l.lost != nil {
		return false
	}
	if len(list) == 0 {
		return true
	}
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Offset == events[n-1].Offset+1 {
			n++
		}
		if events[n-1].Offset > l.head {
			for events[0].Offset <= l.head {
				events, n = events[1:], n-1
			}
			l.recent.Add(events[:n:n], idCost)
		}
		events = events[n:]
	}
	for _, s := range list {
		if s.offset > l.head && s.id != "" {
			l.recall.note(s.id, s.offset, s.time)
		}
		if l.sent[s.name] != nil {
			l.sent[s.name].seen(s.offset, s.time)
		}
	}
	newest := list[len(list)-1]
	if newest.offset > l.head {
		l.head, l.time = newest.offset, newest.time
		if l.limit > 0 && l.head > l.limit {
			l.oldest = max(l.oldest, l.head+1-l.limit)
		}
		l.announceLocked()
	}
	l.DropLocked()
	return true
}

// event completes a stored body; false if it is none. last is the topic of the event before, which most often is this one's too.
func (s stored) event(last *topic.Name) (engine.Event, bool) {
	name, err := wire.BodyTopic(s.body)
	if err != nil {
		return engine.Event{}, false
	}
	if last.String() != string(name) {
		*last = topic.Stored(string(name))
	}
	b := make([]byte, 0, len(s.body)+wire.MaxTrailer)
	b = wire.AppendOffset(wire.AppendTimestamp(append(b, s.body...), s.time), s.offset)
	return engine.Event{Offset: s.offset, Topic: *last, Timestamp: s.time, Wire: b}, true
}

// pause waits before another attempt, longer each time.
func pause(ctx context.Context, n int) error {
	const least, most = 5 * time.Millisecond, 500 * time.Millisecond
	timer := time.NewTimer(min(least<<min(n, 10), most))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
