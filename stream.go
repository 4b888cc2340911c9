package runnel

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// opened is a stream that the server has welcomed.
type opened struct {
	stream  runnelv1.StreamService_EstablishStreamClient
	link    *link
	channel *channel
	token   string
	at      string   // the address of the server
	first   response // with Welcome
	cancel  context.CancelFunc
	ctx     context.Context
	watch   *time.Timer // cuts a server that says nothing
}

func (o *opened) close(s *Session) {
	o.watch.Stop()
	o.cancel()
	s.c.left(o.link, o.channel)
	s.c.done(o.link)
}

// open opens a stream on a link, which is the stream's if there is no error, and returns the token it was tried with. The stream lives
// as long as ctx.
func (s *Session) open(ctx context.Context, l *link, refused string) (_ *opened, token string, err error) {
	o := &opened{link: l}
	o.ctx, o.cancel = context.WithCancel(ctx)
	// A dead server cannot say so: whoever is silent for too long is taken for dead, from the first moment on.
	o.watch = time.AfterFunc(deadAfter, o.cancel)
	if o.channel, err = s.c.stream(l); err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			o.watch.Stop()
			o.cancel()
			s.c.left(l, o.channel)
		}
	}()
	out, token, err := s.c.outgoing(o.ctx, refused)
	if err != nil {
		return nil, "", err
	}
	o.token = token
	if o.stream, err = o.channel.api.EstablishStream(out); err != nil {
		return nil, token, wrap(ctx, err)
	}
	for {
		err := o.stream.RecvMsg(&o.first)
		o.at = peerOf(o.stream.Context())
		if err != nil {
			return nil, token, at(o.wrap(ctx, err), o.at)
		}
		for _, c := range o.first.controls {
			if w := c.GetWelcome(); w != nil {
				s.c.welcomed(w)
				return o, token, nil
			}
		}
	}
}

// wrap says why the stream broke. ctx is what it was opened with.
func (o *opened) wrap(ctx context.Context, err error) error {
	if o.ctx.Err() != nil && ctx.Err() == nil {
		err = status.Errorf(codes.Unavailable, "the server has said nothing for %v", deadAfter)
	}
	return wrap(ctx, err)
}

// serve serves a stream until it breaks, or another that is to take its place is ready: then that is returned.
func (s *Session) serve(o *opened) (next *opened, err error) {
	var workers sync.WaitGroup
	var mv *mover // nil: nobody has asked the session to move
	defer func() {
		o.cancel()
		workers.Wait()
		o.close(s)
		if mv != nil {
			next = mv.next
		}
		if next != nil && s.ctx.Err() != nil {
			next.close(s)
			next = nil
		}
	}()
	s.refused = ""
	s.resume()
	workers.Go(func() { s.write(o.ctx, o.stream) })
	s.expiring = nil
	if s.c.tokens != nil {
		r := &renewing{s: s, used: o.token, soon: make(chan struct{}, 1)}
		s.expiring = r.soon
		workers.Go(func() { r.run(o.ctx) })
	}
	for m := &o.first; ; {
		for _, c := range m.controls {
			d := c.GetDrain()
			if d.GetWithinMs() > 0 && mv == nil {
				s.c.learn(d.GetEndpoints())
				mv = &mover{s: s, from: o, endpoints: d.GetEndpoints(), within: time.Duration(d.GetWithinMs()) * time.Millisecond}
				workers.Go(mv.run)
			}
			if err := s.control(c); err != nil {
				return nil, err
			}
		}
		for _, d := range m.deliveries {
			if sub := s.subscription(d.subscription); sub != nil {
				sub.deliver(o.ctx, d.events)
			}
		}
		if err := o.stream.RecvMsg(m); err != nil {
			return nil, o.wrap(s.ctx, err)
		}
		o.watch.Reset(deadAfter)
	}
}
