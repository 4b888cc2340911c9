package natsengine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// An append is on its way when another node deletes the namespace and begins it anew: it is stored nowhere, and says so.
func TestAppendAcrossDeletion(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	for name, batch := range map[string][]engine.Entry{
		"one":   {entry("n.a", "late")},
		"batch": {entry("n.a", "late"), entry("n.b", "late")},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, c.URL(0))
			l := logOf(t, open(t, Options{URLs: []string{p.url()}, Replicas: 1}), "n")
			other := open(t, Options{URLs: c.URLs(), Replicas: 1})
			put(t, logOf(t, other, "n"), entry("n.a", "before"))
			h := p.holdBack("HPUB runnel.n.a ")
			failed := make(chan error, 1)
			p.group.Go(func() {
				_, err := l.Append(t.Context(), batch, engine.AppendOrdered)
				failed <- err
			})
			<-h.reached
			if err := other.Delete(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
			next := logOf(t, other, "n")
			close(h.let)
			if err := <-failed; !errors.Is(err, engine.ErrDeleted) || errors.Is(err, engine.ErrStorageFailed) {
				t.Errorf("%v", err)
			}
			// What came late would be here before this.
			if r := put(t, next, entry("n.a", "first"))[0]; r.Offset != 1 || len(everything(t, next)) != 1 {
				t.Errorf("the next life begins with %+v", r)
			}
			if own := logOf(t, l.e, "n"); own.State().Epoch != next.State().Epoch {
				t.Errorf("the next log is of epoch %s, and at the other node %s", own.State().Epoch, next.State().Epoch)
			}
			if err := other.Delete(t.Context(), "n"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A server has not removed all files of a stream that was deleted when the namespace begins anew.
func TestLeftFiles(t *testing.T) {
	t.Parallel()
	var dir string
	c := natstest.New(t, 1, func(o *server.Options) { dir = o.StoreDir })
	e := open(t, Options{URLs: c.URLs(), Replicas: 1})
	l := logOf(t, e, "n")
	put(t, l, entry("n.a", "1"), entry("n.a", "2"))
	// The server moves them to this place to remove them, and cannot while something is there.
	if err := os.MkdirAll(filepath.Join(dir, "jetstream", "$G", "streams", "."+l.stream, "left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.Delete(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if next := logOf(t, e, "n"); next.State().Head != 0 || len(everything(t, next)) != 0 {
		t.Errorf("events outlived their namespace: %+v", next.State())
	}
}

// Events that are on their way when the connection that brings them back breaks have an unknown fate at once, and those that come later
// are not sent into the void.
func TestPassingBreaks(t *testing.T) {
	t.Parallel()
	r := newRelay(t, natstest.New(t, 1))
	e := open(t, Options{URLs: []string{r.url()}, Replicas: 1, Namespace: func(string) (engine.Config, bool) {
		return engine.Config{History: engine.HistoryNone}, true
	}})
	l := logOf(t, e, "n")
	before := l.State()
	passed := make(chan struct{}, 1)
	r.set(nil, func(m *packet) bool {
		if m.subject == "runnel.n.a" {
			passed <- struct{}{}
			return false
		}
		return true
	})
	failed := make(chan error, 1)
	r.group.Go(func() {
		_, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "1")}, engine.AppendEach)
		failed <- err
	})
	<-passed
	r.set(nil, nil)
	began := time.Now()
	if err := e.feed.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, engine.ErrStorageFailed) || time.Since(began) > echoWait/2 {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	until(t, "an append", func() bool {
		res, err := l.Append(t.Context(), []engine.Entry{entry("n.a", "1")}, engine.AppendEach)
		if err != nil && !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("append: %v", err)
		}
		return err == nil && !res[0].Duplicate
	})
	if l.State().Epoch == before.Epoch {
		t.Error("events may have been missed, and the epoch is the same")
	}
}

// A namespace without history is open when both of its subscriptions are: an event that is published then comes back.
func TestPassingProbes(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	var probes atomic.Int64
	enough := make(chan struct{})
	p := newProxy(t, c.URL(0), func(p *proxy) {
		p.sees = func(chunk []byte) {
			if bytes.Contains(chunk, []byte("HPUB runnel.n")) && probes.Add(1) == 5 {
				close(enough)
			}
		}
	})
	e := open(t, Options{URLs: []string{p.url()}, Replicas: 1, Namespace: func(string) (engine.Config, bool) {
		return engine.Config{History: engine.HistoryNone}, true
	}})
	h := p.holdBack("SUB runnel.n.> ")
	opened := make(chan struct{})
	var l engine.Log
	p.group.Go(func() {
		l, _ = e.Log("n")
		close(opened)
	})
	<-h.reached
	select {
	case <-enough: // and none of them ended the wait
	case <-opened:
		t.Errorf("the log is open, and the server has one subscription")
	}
	close(h.let)
	<-opened
	put(t, l, entry("n.a", "1"))
}
