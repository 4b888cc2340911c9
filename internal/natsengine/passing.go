package natsengine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

const (
	// passingBuffer is how many messages may wait for the feed of a log without history.
	passingBuffer = 2 * appendWindow
	// echoWait is how long an event may take to come back from NATS.
	echoWait = 5 * time.Second
)

// open begins to follow a log without history: what passes on its subjects gets a sequence number of this process and goes to the
// tails. Where something may have passed unseen, the log has a new epoch, and its tails are over.
func (l *log) open() error {
	p, err := l.listen()
	if err != nil {
		return err
	}
	l.anew()
	l.e.group.Go(func() {
		for {
			l.pass(p)
			l.deaf()
			for n := 0; ; n++ {
				if pause(l.ctx, n) != nil {
					return
				}
				var err error
				if p, err = l.listen(); err == nil {
					break
				}
			}
			l.anew()
		}
	})
	return nil
}

// passing is a subscription to a log without history. Its connection may break, and messages may be dropped.
type passing struct {
	messages      chan *nats.Msg
	own, below    *nats.Subscription
	lost          <-chan struct{}
	dropped, also <-chan struct{}
}

func (l *log) listen() (*passing, error) {
	feed := l.e.feed
	p := &passing{messages: make(chan *nats.Msg, passingBuffer), lost: feed.watch()}
	if !feed.up() {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, errAway)
	}
	var err error
	subject := l.e.o.subject(l.name)
	if p.own, err = feed.nc.ChanSubscribe(subject, p.messages); err != nil {
		return nil, err
	}
	if p.below, err = feed.nc.ChanSubscribe(subject+".>", p.messages); err != nil {
		feed.unsubscribe(p.own)
		return nil, err
	}
	p.dropped, p.also = feed.drops(p.own), feed.drops(p.below)
	if err := l.probe(p); err != nil {
		feed.unsubscribe(p.own)
		feed.unsubscribe(p.below)
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	return p, nil
}

// probe waits until what is appended here comes back, over each of the subscriptions: the server of one connection hears of the
// subscriptions of another after a while, and of one before the other. What comes before that was published before the log was followed.
func (l *log) probe(p *passing) error {
	ctx, cancel := context.WithTimeout(l.ctx, apiWait)
	defer cancel()
	subject := l.e.o.subject(l.name)
	missing := map[string]string{newEpoch(): subject, newEpoch(): subject + ".probe"} // by name
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for name, subject := range missing {
			m := &nats.Msg{Subject: subject, Header: nats.Header{headerName: {name}}}
			if err := l.e.write.nc.PublishMsg(m); err != nil {
				return sendError(err)
			}
		}
		for waiting := true; waiting; {
			select {
			case m := <-p.messages:
				if delete(missing, first(m.Header, headerName)); len(missing) == 0 {
					return nil
				}
			case <-tick.C:
				waiting = false
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// pass takes in what passes until something may have been missed.
func (l *log) pass(p *passing) {
	defer l.e.feed.unsubscribe(p.own)
	defer l.e.feed.unsubscribe(p.below)
	var last topic.Name
	for {
		select {
		case m := <-p.messages:
			l.take(m, &last)
			l.recent.AwaitRoom(l.ctx.Done())
		case <-p.lost:
			return
		case <-p.dropped:
			return
		case <-p.also:
			return
		case <-l.ctx.Done():
			return
		}
	}
}

// take hands a message to the tails.
func (l *log) take(m *nats.Msg, last *topic.Name) {
	name, err := wire.BodyTopic(m.Data)
	sent, timeErr := strconv.ParseInt(first(m.Header, headerTime), 10, 64)
	if err != nil || timeErr != nil {
		return // not from a node
	}
	if last.String() != string(name) {
		*last = topic.Stored(string(name))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return
	}
	l.head++
	l.time = max(l.time, sent)
	l.oldest = l.head + 1
	if l.recent.Followed() {
		body := wire.AppendTimestamp(append(make([]byte, 0, len(m.Data)+wire.MaxTrailer), m.Data...), l.time)
		l.recent.Add([]engine.Event{{Offset: l.head, Topic: *last, Timestamp: l.time, Wire: body}}, 0)
	}
	if s := l.sent[first(m.Header, headerName)]; s != nil {
		s.seen(0, l.time)
	}
	l.announceLocked()
}

// anew begins an epoch: from now on nothing is missed.
func (l *log) anew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return
	}
	l.recent.Clear()
	l.epoch, l.hears = newEpoch(), make(chan struct{})
	l.announceLocked()
}

// deaf says that what passes may be missed: whoever waits for an event to come back waits in vain.
func (l *log) deaf() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hears != nil { // nil: the log was deleted before it could begin anew
		close(l.hears)
		l.hears = nil
	}
}

// headerTime is when an event without history was published, in Unix milliseconds.
const headerTime = "Runnel-Time"

// appendPassing publishes events that are not kept. An event is acknowledged when NATS has brought it back to this node.
func (l *log) appendPassing(ctx context.Context, entries []engine.Entry, mode engine.AppendMode) ([]engine.Result, error) {
	if err := l.e.window.Acquire(ctx, int64(min(len(entries), appendWindow))); err != nil {
		return nil, err
	}
	defer l.e.window.Release(int64(min(len(entries), appendWindow)))
	l.mu.Lock()
	hears := l.hears
	l.mu.Unlock()
	if hears == nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, errAway)
	}
	results := make([]engine.Result, len(entries))
	waits := make([]*known, len(entries))
	var mine []*known
	var list []*sending
	defer func() { l.sendingEnds(list...) }()
	stopped := false
	for i := range entries {
		en := &entries[i]
		switch {
		case stopped:
			results[i].Err = engine.ErrSkipped
			continue
		case en.Conditional:
			results[i].Err = engine.ErrNoHistory
			stopped = mode == engine.AppendOrdered
			continue
		}
		s := l.send()
		list = append(list, s)
		k := &known{sending: s}
		if en.Dedup {
			var fresh bool
			if k, fresh = l.ids.claim(hashID(en.Topic, en.ID), s); !fresh {
				results[i].Duplicate = true
				waits[i] = k
				continue
			}
			mine = append(mine, k)
		}
		waits[i] = k
		m := &nats.Msg{Subject: l.e.o.subject(en.Topic.String()), Data: en.Body, Header: nats.Header{
			headerName: {s.name}, headerTime: {strconv.FormatInt(time.Now().UnixMilli(), 10)},
		}}
		if err := l.e.write.nc.PublishMsg(m); err != nil {
			l.ids.forget(mine)
			if i == 0 {
				return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, sendError(err))
			}
			return nil, fmt.Errorf("%w: %w", engine.ErrStorageFailed, sendError(err))
		}
	}
	for i, k := range waits {
		if k == nil {
			continue
		}
		if err := l.echo(ctx, k.sending, hears); err != nil {
			if errors.Is(err, engine.ErrStorageFailed) {
				l.ids.forget(mine) // may be sent again
			}
			return nil, err
		}
		results[i].Timestamp = k.sending.time
	}
	return results, nil
}

// echo waits until NATS has brought an event back.
func (l *log) echo(ctx context.Context, s *sending, hears <-chan struct{}) error {
	timer := time.NewTimer(echoWait)
	defer timer.Stop()
	lost := l.e.write.watch()
	select {
	case <-s.came:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-lost:
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, errLost)
	case <-hears:
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, errLost)
	case <-timer.C:
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, errSilent)
	case <-l.e.killed.Done():
		return fmt.Errorf("%w: %w", engine.ErrStorageFailed, engine.ErrClosed)
	}
}
