// Package natsengine is the engine on NATS: logs are JetStream streams of a cluster that any number of nodes share.
//
// A namespace that keeps history is a stream; an event's offset is its sequence number and its subject is its topic behind a
// prefix. Each node has one consumer per namespace, which feeds all tails, tells the head, and says what became of this node's
// own appends. A namespace without history is a subject of core NATS. See docs/cluster.md.
//
// Engine and its logs are safe for concurrent use.
package natsengine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/opens"
	"github.com/runnelhq/runnel/internal/ring"
	"github.com/runnelhq/runnel/internal/topic"
)

// Options configure Open. URLs, Namespace and Logger are required.
type Options struct {
	URLs        []string // of NATS servers
	Credentials Credentials
	Name        string // of this node, as NATS shows it
	// Replicas is how many servers keep each event; 0: 3. With 1 an event is as safe as the one server that has it.
	Replicas int
	// Prefix begins the names of streams and subjects; empty: "runnel". Nodes with different prefixes share nothing.
	Prefix string
	// Namespace returns a namespace's configuration, or false if there is no such namespace. It is called on a namespace's
	// first use.
	Namespace func(name string) (engine.Config, bool)
	Logger    *slog.Logger
	// MaxNamespaces bounds how many namespaces are open; 0: 1,000.
	MaxNamespaces int
	// MaxEvent is the size of the largest body of an event that will be appended; Open fails where NATS takes less. 0: it is
	// not looked at.
	MaxEvent int
}

const (
	defaultDedupWindow = 2 * time.Minute
	defaultDedupIDs    = 1 << 20
	// leastMajor and leastMinor are the oldest NATS server with all that is used here.
	leastMajor, leastMinor = 2, 14
	// overhead is what headers and the subject add to a body.
	overhead = 1 << 10
	// readers is how many connections there are for reads, each with as many reads at a time: a server works on what a
	// connection asks one by one, so reads never share one with appends or tails.
	readers       = 2
	readsAtOnce   = 4
	closePatience = 3 * time.Second
)

// Engine is an engine.Engine.
type Engine struct {
	// Fixed after Open.
	o         Options
	write     *link
	feed      *link
	reads     [readers]*link
	ctx       context.Context // of everything in the background; appends outlive it by a little
	stop      context.CancelFunc
	kill      context.CancelFunc // ends appends that Close cannot wait for
	killed    context.Context
	group     sync.WaitGroup
	nonce     string        // begins the name of every append of this process
	aheadWait time.Duration // for a position above head
	lockLife  time.Duration // after which a lock's holder is taken for dead

	appends sync.WaitGroup
	opens   *opens.Logs[*log]
	turn    atomic.Uint64
	logs    atomic.Int64        // open with history
	window  *semaphore.Weighted // appended events on their way
	reading *semaphore.Weighted

	mu       sync.Mutex
	closed   bool
	done     chan struct{}    // closed when Close is through
	troubles map[string]error // by namespace: its stream's leader did not answer when last asked
}

var _ engine.Engine = (*Engine)(nil)

// Open connects to NATS. Errors are one line and say what to do. The engine runs until Close.
func Open(o Options) (*Engine, error) {
	if o.Replicas == 0 {
		o.Replicas = 3
	}
	if o.Prefix == "" {
		o.Prefix = "runnel"
	}
	if o.MaxNamespaces == 0 {
		o.MaxNamespaces = 1000
	}
	if _, err := topic.ParseNamespace(o.Prefix); err != nil {
		return nil, fmt.Errorf("bad prefix for NATS %q: it is one token of letters, digits and _ - : @ = +", o.Prefix)
	}
	if len(o.URLs) == 0 {
		return nil, errors.New("no NATS server is named")
	}
	e := &Engine{
		o: o, nonce: newEpoch(), troubles: map[string]error{}, done: make(chan struct{}),
		window: semaphore.NewWeighted(appendWindow), reading: semaphore.NewWeighted(readers * readsAtOnce), aheadWait: aheadWait, lockLife: lockLife,
	}
	e.opens = opens.New[*log](o.MaxNamespaces, o.known, func() (leave func(), err error) { return e.appends.Done, e.enter() })
	if o.Replicas > 1 {
		e.aheadWait = aheadWaitReplicas
	}
	if err := e.connect(); err != nil {
		e.disconnect()
		return nil, err
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.killed, e.kill = context.WithCancel(context.Background())
	e.group.Go(e.mind)
	return e, nil
}

func (e *Engine) connect() (err error) {
	if e.write, err = dial(&e.o, "appends"); err != nil {
		return err
	}
	if e.feed, err = dial(&e.o, "tails"); err != nil {
		return err
	}
	for i := range e.reads {
		if e.reads[i], err = dial(&e.o, "reads"); err != nil {
			return err
		}
	}
	return e.checkServer()
}

func (e *Engine) checkServer() error {
	nc := e.write.nc
	if v := nc.ConnectedServerVersion(); !newEnough(v) {
		return fmt.Errorf("NATS server %s is version %s: at least %d.%d is needed", nc.ConnectedServerName(), v, leastMajor, leastMinor)
	}
	if most := nc.MaxPayload(); e.o.MaxEvent > 0 && most < int64(e.o.MaxEvent)+overhead {
		return fmt.Errorf("NATS takes messages of up to %d bytes, and events may have %d: raise max_payload of the NATS servers to %d, or allow smaller events",
			most, e.o.MaxEvent, e.o.MaxEvent+overhead)
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupWait)
	defer cancel()
	err := e.api(ctx, setupWait, "INFO", nil, &answer)
	switch {
	case errors.Is(err, errNoResponders):
		return errors.New("NATS has no JetStream for this node: enable it on the servers and for the account")
	case errors.Is(err, errSilent):
		return errors.New("JetStream does not answer: its cluster may have no majority, or this node's permissions do not cover $JS.API")
	case err != nil:
		return fmt.Errorf("cannot ask NATS for JetStream: %s", oneLine(err))
	case answer.Error != nil:
		return fmt.Errorf("NATS has no JetStream for this node: %s", answer.Error.Description)
	}
	return nil
}

// newEnough reports whether a server's version is at least the one needed.
func newEnough(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (a > leastMajor || a == leastMajor && b >= leastMinor)
}

func (e *Engine) disconnect() {
	for _, l := range append([]*link{e.write, e.feed}, e.reads[:]...) {
		if l != nil {
			l.close()
		}
	}
}

// reader returns a connection for a read.
func (e *Engine) reader() *link { return e.reads[e.turn.Add(1)%readers] }

// ringBytes is how much of recent events a log may keep.
func (e *Engine) ringBytes() int {
	return min(ring.MaxBytes, max(leastRing, allRings/int(max(e.logs.Load(), 1))))
}

func (o *Options) subject(name string) string { return o.Prefix + "." + name }

func (o *Options) known(namespace string) bool {
	_, ok := o.Namespace(namespace)
	return ok
}

// Log implements engine.Engine.
func (e *Engine) Log(namespace string) (engine.Log, error) {
	l, err := e.opens.Open(namespace, func() (*log, error) {
		cfg, ok := e.o.Namespace(namespace)
		if !ok {
			return nil, engine.ErrUnknownNamespace
		}
		return e.openLog(namespace, cfg)
	})
	if err != nil {
		return nil, err
	}
	if l.readable() != nil { // it was over before it could be taken out
		e.opens.Forget(namespace, l)
	}
	return l, nil
}

// enter admits a call that stores something, unless the engine is closing.
func (e *Engine) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return engine.ErrClosed
	}
	e.appends.Add(1)
	return nil
}

// Health implements engine.Engine.
func (e *Engine) Health() error {
	e.mu.Lock()
	closed := e.closed
	var trouble error
	for _, err := range e.troubles {
		trouble = err
	}
	e.mu.Unlock()
	switch {
	case closed:
		return engine.ErrClosed
	case !e.write.up() || !e.feed.up():
		return fmt.Errorf("%w: no connection to NATS", engine.ErrUnavailable)
	default:
		return trouble
	}
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	again := e.closed
	e.closed = true
	e.mu.Unlock()
	if again {
		<-e.done
		return nil
	}
	defer close(e.done)
	// Appends that are on their way get their answers. Those that NATS does not answer end without knowing.
	late := time.AfterFunc(closePatience, e.kill)
	e.appends.Wait()
	late.Stop()
	e.kill()
	e.stop()
	e.group.Wait()
	e.disconnect()
	return nil
}
