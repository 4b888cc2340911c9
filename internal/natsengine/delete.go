package natsengine

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Delete implements engine.Engine. The logs of other nodes are over as soon as these notice.
func (e *Engine) Delete(ctx context.Context, namespace string) error {
	if _, err := topic.ParseNamespace(namespace); err != nil {
		return engine.ErrUnknownNamespace
	}
	o, end, err := e.beginDelete(ctx, namespace)
	if err != nil {
		return err
	}
	defer end()
	var l *log
	if o != nil {
		select {
		case <-o.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		l = o.log // nil if it could not be opened
	}
	if l == nil {
		existed, err := e.deleteStream(ctx, namespace)
		if err == nil && !existed {
			err = engine.ErrUnknownNamespace
		}
		return err
	}
	return l.delete(ctx)
}

// beginDelete takes the namespace's turn: until end nobody else deletes it, and nobody opens its log.
func (e *Engine) beginDelete(ctx context.Context, namespace string) (o *opening, end func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.deletes[namespace] != nil {
		over := e.deletes[namespace]
		e.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			err = ctx.Err()
		}
		e.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
	}
	if e.closed {
		return nil, nil, engine.ErrClosed
	}
	over := make(chan struct{})
	e.deletes[namespace] = over
	e.appends.Add(1) // Close waits for it
	return e.opens[namespace], func() {
		e.mu.Lock()
		delete(e.deletes, namespace)
		e.mu.Unlock()
		close(over)
		e.appends.Done()
	}, nil
}

// delete waits for the appends that are on their way, and lets no other begin.
func (l *log) delete(ctx context.Context) error {
	l.gate.Lock()
	defer l.gate.Unlock()
	// Perhaps another node deleted this log's stream, and what is there now is the next one. A namespace without history may have had
	// a stream before.
	if _, err := l.e.deleteStream(ctx, l.name); err != nil {
		return err
	}
	l.end()
	return nil
}

// endIfGone ends the log if its stream is gone. A leader that does not find a stream does not say that: it may be new. Which streams there
// are the cluster's leader knows.
func (l *log) endIfGone(ctx context.Context) bool {
	name, err := l.e.find(ctx, l.name)
	if err != nil || name == l.stream {
		return false
	}
	l.end()
	return true
}

// end ends the log, whose stream is gone, unless that has been done.
func (l *log) end() {
	l.mu.Lock()
	over := l.lost != nil
	l.lost, l.recall = engine.ErrDeleted, recall{}
	l.recent.Clear()
	if !over {
		l.announceLocked()
	}
	l.mu.Unlock()
	if over {
		return
	}
	l.e.mu.Lock()
	if o := l.e.opens[l.name]; o != nil && o.log == l {
		delete(l.e.opens, l.name)
		delete(l.e.troubles, l.name)
	}
	l.e.mu.Unlock()
	if l.kept {
		l.e.logs.Add(-1)
	}
	l.shelf.clear()
	l.stop()
}

// deleteStream deletes a namespace's stream; false if there is none. A stream that Runnel has not made is not touched.
func (e *Engine) deleteStream(ctx context.Context, namespace string) (existed bool, err error) {
	i, err := e.look(ctx, namespace)
	if i == nil || err != nil || i.Config.Metadata[metaEpoch] == "" {
		return false, err
	}
	name := i.Config.Name
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	err = e.api(ctx, setupWait, "STREAM.DELETE."+name, nil, &answer)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err == nil || isCode(err, codeStreamNotFound) {
		return true, nil
	}
	if ctx.Err() != nil {
		return true, ctx.Err()
	}
	return true, apiError("cannot delete stream "+name, err)
}

// readable is why the log cannot be used any more.
func (l *log) readable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}
