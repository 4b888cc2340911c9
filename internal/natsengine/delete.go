package natsengine

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/runnelhq/runnel/internal/engine"
)

// Delete implements engine.Engine. The logs of other nodes are over as soon as these notice.
func (e *Engine) Delete(ctx context.Context, namespace string) error {
	return e.opens.Delete(ctx, namespace, func(l *log, open bool) error {
		if open {
			return l.delete(ctx)
		}
		existed, err := e.deleteStream(ctx, namespace)
		if err == nil && !existed {
			err = engine.ErrUnknownNamespace
		}
		return err
	})
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
	l.e.opens.Forget(l.name, l)
	l.e.setTrouble(l.name, nil)
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
