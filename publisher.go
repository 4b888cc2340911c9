package runnel

import (
	"context"
	"errors"
	"slices"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// The window of a session: more than this may not be on its way.
const (
	windowEvents = 1024
	windowBytes  = 4 << 20
)

// Receipt is a publish on its way.
type Receipt struct {
	publish *runnelv1.PublishRequest
	request uint64 // guarded by the session's mu

	done chan struct{}
	ack  Ack
	err  error
}

// Done is closed when the publish is acknowledged or has failed.
func (r *Receipt) Done() <-chan struct{} { return r.done }

// Wait returns the acknowledgement, or why there is none.
func (r *Receipt) Wait(ctx context.Context) (Ack, error) {
	select {
	case <-r.done:
		return r.ack, r.err
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
}

func (r *Receipt) finish(ack Ack, err error) {
	r.ack, r.err = ack, err
	close(r.done)
}

// WhenFull is what Publish does without a connection when its buffer is full.
type WhenFull int

// What Publish does without a connection when its buffer is full. With a connection it always waits for room: that is the server's pace.
const (
	BufferWait       WhenFull = iota // wait for room
	BufferFail                       // return ErrBufferFull
	BufferDropOldest                 // let the oldest go: its receipt gets ErrDropped
)

var (
	// ErrBufferFull is returned by Publish where BufferFail says so.
	ErrBufferFull = errors.New("runnel: the publish buffer is full, and there is no connection")
	// ErrDropped is what became of a publish that BufferDropOldest let go. If it had been sent before the connection broke it may be stored.
	ErrDropped = errors.New("runnel: dropped from a full publish buffer")
)

// buffer bounds what is not acknowledged.
type buffer struct {
	events, bytes int
	full          WhenFull
}

// PublishBuffer sets how much may be on its way or, without a connection, wait: in events, and in bytes of payloads; one event always may.
// Default 1,024 events and 4 MiB, and to wait.
func PublishBuffer(events, bytes int, full WhenFull) SessionOption {
	return func(s *Session) { s.buffer = buffer{events, bytes, full} }
}

// Publish sends an event and returns at once, unless the buffer is full (PublishBuffer): then it waits for room, by default. Events are stored
// in the order of the calls. A connection that breaks is mended, and what was not acknowledged is sent again.
func (s *Session) Publish(ctx context.Context, topic string, payload []byte, opts ...PublishOption) (*Receipt, error) {
	p, err := s.c.request(topic, payload, opts)
	if err != nil {
		return nil, err
	}
	r := &Receipt{publish: p, done: make(chan struct{})}
	for {
		s.mu.Lock()
		if s.err != nil {
			s.mu.Unlock()
			return nil, s.err
		}
		if len(s.unacked) == 0 || len(s.unacked) < s.buffer.events && s.bytes+len(payload) <= s.buffer.bytes {
			break
		}
		if s.away && s.buffer.full == BufferFail {
			s.mu.Unlock()
			return nil, ErrBufferFull
		}
		if s.away && s.buffer.full == BufferDropOldest {
			oldest := s.unacked[0]
			s.unacked[0] = nil
			s.unacked = s.unacked[1:]
			s.bytes -= len(oldest.publish.GetPayload())
			s.mu.Unlock()
			s.finish(oldest, Ack{}, ErrDropped)
			continue
		}
		s.mu.Unlock()
		select {
		case <-s.room:
		case <-s.ctx.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer s.mu.Unlock()
	s.unacked = append(s.unacked, r)
	s.bytes += len(payload)
	if s.online {
		s.publishLocked(r)
	}
	signal(s.room) // there may be room for another
	return r, nil
}

func (s *Session) published(request uint64, p *runnelv1.Published) {
	for i, res := range p.GetResults() {
		s.acknowledge(request+uint64(i), ackOf(res), nil)
	}
}

// acknowledge ends the publish with that request id.
func (s *Session) acknowledge(request uint64, ack Ack, err error) {
	s.mu.Lock()
	i := slices.IndexFunc(s.unacked, func(r *Receipt) bool { return r.request == request })
	if i < 0 {
		s.mu.Unlock()
		return
	}
	r := s.unacked[i]
	if i == 0 { // as nearly always: nothing needs to move
		s.unacked[0] = nil
		s.unacked = s.unacked[1:]
	} else {
		s.unacked = slices.Delete(s.unacked, i, i+1)
	}
	s.bytes -= len(r.publish.GetPayload())
	signal(s.room)
	s.mu.Unlock()
	s.finish(r, ack, err)
}

// finish ends a publish.
func (s *Session) finish(r *Receipt, ack Ack, err error) {
	s.c.counts.acknowledged(ack, err)
	r.finish(ack, err)
}

// Flush waits until every publish so far is acknowledged or has failed, and returns the first failure.
func (s *Session) Flush(ctx context.Context) error {
	s.mu.Lock()
	all := slices.Clone(s.unacked)
	s.mu.Unlock()
	var first error
	for _, r := range all {
		if _, err := r.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// Publisher publishes with a window: many events on their way, each acknowledged, in order.
type Publisher struct{ s *Session }

// Publisher opens a publisher, on a session of its own.
func (c *Client) Publisher(ctx context.Context, opts ...SessionOption) (*Publisher, error) {
	s, err := c.Session(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &Publisher{s}, nil
}

// Publish is Session.Publish.
func (p *Publisher) Publish(ctx context.Context, topic string, payload []byte, opts ...PublishOption) (*Receipt, error) {
	return p.s.Publish(ctx, topic, payload, opts...)
}

// Flush is Session.Flush.
func (p *Publisher) Flush(ctx context.Context) error { return p.s.Flush(ctx) }

// Close waits for what is on its way, as long as ctx allows, and ends the publisher.
func (p *Publisher) Close(ctx context.Context) error {
	err := p.s.Flush(ctx)
	p.s.Close()
	return err
}
