package enginetest

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/history"
)

var faultRuns = []testCase{
	{"fault run", durable, needCrash, func(g *rig) { faultRun(g, engine.Config{}, false) }},
	{"fault run with retention", durable, needCrash, func(g *rig) { faultRun(g, engine.Config{MaxEvents: 150}, false) }},
	{"fault run with failing storage", durable, needCrash | needFail, func(g *rig) { faultRun(g, engine.Config{}, true) }},
	{"fault run in memory", memory, 0, func(g *rig) { faultRun(g, engine.Config{}, false) }},
}

// defaultRounds is how many ends a fault run comes to, unless RUNNEL_ROUNDS says otherwise.
const defaultRounds = 12

// ordeal is a fault run: writers and followers at work on one log while the storage fails and the engine ends, in every way
// the factory has, round after round.
type ordeal struct {
	g         *rig
	a         *account
	rng       *rand.Rand
	fail      bool
	writers   []*writer
	followers []*follower

	cut atomic.Bool // the end has come: what is learned from here on was never learned
}

func faultRun(g *rig, cfg engine.Config, fail bool) {
	seed := number("RUNNEL_SEED", rand.Uint64())
	rounds := number("RUNNEL_ROUNDS", defaultRounds)
	g.Logf("RUNNEL_SEED=%d RUNNEL_ROUNDS=%d", seed, rounds)
	l := g.open(cfg)
	o := &ordeal{g: g, a: g.account(l), rng: newRand(seed), fail: fail}
	for i := range 4 {
		o.writers = append(o.writers, newWriter(o, i, newRand(seed+uint64(i)+1)))
	}
	for i, pattern := range []string{"n.>", "n.shared", "n.>", "n.w.0", "n.w.*", "n.w.1"} {
		o.followers = append(o.followers, newFollower(o, i, g.pattern(pattern)))
	}
	for range rounds {
		l = o.round(l)
	}
	for _, f := range o.followers {
		f.finish(l)
	}
	for _, pattern := range []string{"n.>", "n.w.*", "n.shared", "n.w.2"} {
		p := g.pattern(pattern)
		o.a.readAll(l, o.a.rec.Subscriber("at the end, "+pattern, p), p)
	}
	o.a.judge(l)
}

// number reads a number from the environment.
func number(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// round lets everybody work for a while, ends it all, and returns the log as it came back.
func (o *ordeal) round(l engine.Log) engine.Log {
	ctx, stop := context.WithCancel(o.g.ctx)
	defer stop()
	o.cut.Store(false)
	var group sync.WaitGroup
	left := &countdown{n: 20 + o.rng.Int64N(150), done: make(chan struct{})}
	for _, w := range o.writers {
		group.Go(func() { w.run(ctx, l, left) })
	}
	for _, f := range o.followers {
		group.Go(func() { f.run(ctx, l) })
	}
	if o.fail {
		o.g.storage.Fail(o.rng.IntN(60), 1+o.rng.IntN(3))
	}
	select {
	case <-left.done:
	case <-ctx.Done():
		o.g.Errorf("the publishers are stuck")
	}
	return o.end(l, func() {
		stop()
		group.Wait()
	})
}

// end ends the engine in one of three ways: closed in good order, killed, or cut off from power.
func (o *ordeal) end(l engine.Log, stop func()) engine.Log {
	how := history.Opening{Survives: runnelv1.Durability_DURABILITY_OS}
	after := o.g.storage
	if n := o.rng.IntN(10); n > 1 && o.g.storage.Crash != nil {
		unsynced := 100
		if n > 4 {
			unsynced = o.rng.IntN(100)
			how.Survives = runnelv1.Durability_DURABILITY_DISK
		}
		o.cut.Store(true)
		after = o.g.storage.Crash(unsynced, o.rng)
	}
	if o.fail {
		o.g.storage.Fail(0, 0)
	}
	stop()
	o.a.rec.Trimmed(namespace, l.State().Oldest)
	if o.g.history == engine.HistoryMemory {
		how.Fresh = true
	}
	o.g.close()
	o.g.storage = after
	l = o.g.open(o.g.cfg)
	o.a.opened(l, how)
	return l
}

// gone reports whether what was just learned is void.
func (o *ordeal) gone() bool { return o.cut.Load() }

// countdown closes done when it has been counted down.
type countdown struct {
	n    int64
	done chan struct{}
}

func (c *countdown) count() {
	if atomic.AddInt64(&c.n, -1) == 0 {
		close(c.done)
	}
}
