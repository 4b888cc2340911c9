package grpcapi

import (
	"context"
	"runtime/pprof"
	"sync"
	"sync/atomic"

	"github.com/runnelhq/runnel/internal/session"
)

// maxFrame is the size of a message with more than one event in it. A little less than what grpc-go buffers for a write, so that
// a frame leaves with one system call.
const maxFrame = WriteBuffer - 1<<10

// WriteBuffer is what grpc-go gathers for a write to a connection (grpc.WriteBufferSize).
const WriteBuffer = 64 << 10

// framesInTurn is how many frames a stream may send before others have their turn.
const framesInTurn = 4

// pump writes the frames of all streams with a few workers. A stream's handler only waits: were each to write its own frames, every
// delivery would switch goroutines once more. That works because a writer that is not full never blocks.
type pump struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  []*outlet
	idle   int // workers that wait
	closed bool
}

func newPump() *pump {
	p := &pump{}
	p.cond.L = &p.mu
	return p
}

// run works until ctx ends.
func (p *pump) run(ctx context.Context, workers int) {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		p.closed = true
		p.cond.Broadcast()
		p.mu.Unlock()
	})()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			pprof.Do(ctx, pprof.Labels("runnel", "pump"), func(context.Context) { p.work() })
		})
	}
	group.Wait()
}

func (p *pump) add(o *outlet) {
	p.mu.Lock()
	p.queue = append(p.queue, o)
	if p.idle > 0 {
		p.cond.Signal()
	}
	p.mu.Unlock()
}

// share is the most outlets that a worker takes at once: each lock serves many, and nobody is left without.
const share = 16

func (p *pump) work() {
	var mine [share]*outlet
	for {
		p.mu.Lock()
		for len(p.queue) == 0 && !p.closed {
			p.idle++
			p.cond.Wait()
			p.idle--
		}
		if p.closed {
			p.mu.Unlock()
			return
		}
		n := copy(mine[:min(share, len(p.queue)/2+1)], p.queue)
		clear(p.queue[:n])
		p.queue = p.queue[n:]
		p.mu.Unlock()
		for i, o := range mine[:n] {
			o.turn()
			mine[i] = nil
		}
	}
}

// What an outlet is doing.
const (
	idle    = iota // nothing is known to be there
	queued         // it waits for a worker
	running        // a worker is at it
	again          // and something came meanwhile
)

// outlet is where one stream's frames go out.
type outlet struct {
	pump *pump
	one  *session.Session
	w    *writer
	over chan error // receives why the session is over, once

	state atomic.Int32

	mu      sync.Mutex // held by the worker that is at it
	stopped bool
	blocked bool
}

// newOutlet returns an outlet that sends nothing before start.
func newOutlet(p *pump) *outlet {
	o := &outlet{pump: p, over: make(chan error, 1)}
	o.state.Store(running)
	return o
}

// start lets the workers come.
func (o *outlet) start() {
	o.state.Store(queued)
	o.pump.add(o)
}

// wake says that there may be something to do. It never blocks, and calls nothing but the pump.
func (o *outlet) wake() {
	for {
		switch s := o.state.Load(); s {
		case idle:
			if o.state.CompareAndSwap(idle, queued) {
				o.pump.add(o)
				return
			}
		case running:
			if o.state.CompareAndSwap(running, again) {
				return
			}
		default:
			return
		}
	}
}

// turn is one worker's visit.
func (o *outlet) turn() {
	o.state.Store(running)
	if more := o.send(); !more && o.state.CompareAndSwap(running, idle) {
		return
	}
	o.state.Store(queued)
	o.pump.add(o)
}

// send sends some frames; true if there may be more to send now.
func (o *outlet) send() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range framesInTurn {
		switch {
		case o.stopped:
			return false
		case o.w.full():
			return o.block()
		case o.blocked:
			o.blocked = false
			o.one.Blocked(false)
		}
		p := newParcel()
		err := o.one.Next(&p.frame, maxFrame)
		if err != nil || p.frame.Bytes == 0 {
			p.free()
			o.end(err)
			return false
		}
		if err := o.w.send(p); err != nil {
			o.end(err)
			return false
		}
		if !o.one.Sent() {
			return false
		}
	}
	return true
}

// block waits for the transport, without a worker.
func (o *outlet) block() bool {
	if err := o.one.Err(); err != nil {
		o.end(err)
		return false
	}
	if !o.blocked {
		o.blocked = true
		o.one.Blocked(true)
	}
	return !o.w.full() // what has left just now has woken nobody
}

// end tells the handler why the session is over, if err is not nil.
func (o *outlet) end(err error) {
	if err != nil {
		o.stopped = true
		o.over <- err
	}
}

// wait is the handler's part: it returns when the session or the stream is over. Nothing is sent afterwards.
func (o *outlet) wait(ctx context.Context) error {
	var err error
	select {
	case err = <-o.over:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	o.stop()
	return err
}

// stop returns once no worker is at it, and keeps them away.
func (o *outlet) stop() {
	o.mu.Lock()
	o.stopped = true
	o.mu.Unlock()
}
