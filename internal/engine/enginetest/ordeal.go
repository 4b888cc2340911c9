package enginetest

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/history"
)

var faultRuns = []testCase{
	{"fault run", durable, needCrash, func(g *rig) { faultRun(g, engine.Config{}, false) }},
	{"fault run with retention", durable, needCrash, func(g *rig) { faultRun(g, engine.Config{MaxEvents: 40}, false) }},
	{"fault run with failing storage", durable, needCrash | needFail, func(g *rig) { faultRun(g, engine.Config{}, true) }},
	{"fault run with disturbances", durable, needDisturb, func(g *rig) { faultRun(g, engine.Config{}, false) }},
	{"fault run with disturbances and retention", durable, needDisturb, func(g *rig) { faultRun(g, engine.Config{MaxEvents: 40}, false) }},
	{"fault run in memory", memory, 0, func(g *rig) { faultRun(g, engine.Config{}, false) }},
}

// How many ends a fault run comes to, unless RUNNEL_ROUNDS says otherwise: a few, or with RUNNEL_CRASH set many.
const (
	someRounds = 12
	manyRounds = 300
)

// ordeal is a fault run: writers and followers at work on one log while the storage fails and the engine ends, in every way
// the factory has, round after round.
type ordeal struct {
	g         *rig
	a         *account
	rng       *rand.Rand
	fail      bool
	writers   []*writer
	followers []*follower
	left      *countdown // of the round

	cut atomic.Bool // the end has come: what is learned from here on was never learned
}

func faultRun(g *rig, cfg engine.Config, fail bool) {
	seed := number("RUNNEL_SEED", rand.Uint64())
	rounds := uint64(someRounds)
	if os.Getenv("RUNNEL_CRASH") != "" {
		rounds = manyRounds
	}
	rounds = number("RUNNEL_ROUNDS", rounds)
	g.Logf("RUNNEL_SEED=%d RUNNEL_ROUNDS=%d", seed, rounds)
	l := g.open(cfg)
	o := &ordeal{g: g, a: g.account(l), rng: newRand(seed), fail: fail}
	for i := range 4 {
		o.writers = append(o.writers, newWriter(o, i, newRand(seed+uint64(i)+1)))
	}
	for i, pattern := range []string{"n.>", "n.shared", "n.>", "n.w.0", "n.w.*", "n.w.1"} {
		o.followers = append(o.followers, newFollower(o, i, g.pattern(pattern)))
	}
	if fail {
		rounds = (rounds + 1) / 2 // a recovery takes its time
	}
	if g.storage.Disturb != nil {
		rounds = (rounds + 5) / 6 // and these longer
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
	o.g.Logf("at the end: %+v", l.State())
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
	how := o.choose()
	after := o.g.storage
	o.left = &countdown{n: 20 + o.rng.Int64N(300), done: make(chan struct{}), last: func() {
		if how.crash {
			o.cut.Store(true)
			after = o.g.storage.Crash(how.unsynced, o.rng)
		}
	}}
	o.g.clock.move(time.Duration(o.rng.IntN(6000)-3000) * time.Millisecond)
	other := o.g.log(beside)
	if o.fail {
		o.g.storage.Fail(o.rng.IntN(60), 1+o.rng.IntN(3))
	}
	rng := newRand(o.rng.Uint64()) // whoever ends the round uses o.rng
	for _, w := range o.writers {
		group.Go(func() { w.run(ctx, l, other) })
	}
	for _, f := range o.followers {
		group.Go(func() { f.run(ctx, l) })
	}
	disturbed := make(chan struct{})
	group.Go(func() {
		defer close(disturbed)
		if o.g.storage.Disturb != nil {
			o.g.storage.Disturb(rng)
		}
	})
	for _, ends := range []<-chan struct{}{disturbed, o.left.done} {
		select {
		case <-ends:
		case <-ctx.Done():
			o.g.Fatalf("publishers and followers are stuck")
		}
	}
	if o.fail {
		o.g.storage.Fail(0, 0)
	}
	stop()
	group.Wait()
	o.a.rec.Trimmed(namespace, l.State().Oldest)
	o.g.close()
	o.g.storage = after
	l = o.g.open(o.g.cfg)
	o.a.opened(l, how.opening)
	return l
}

// end is one of the ways in which an engine ends: closed in good order, killed, or cut off from power.
type end struct {
	opening  history.Opening // what follows
	crash    bool
	unsynced int
}

func (o *ordeal) choose() end {
	e := end{opening: history.Opening{
		Survives: runnelv1.Durability_DURABILITY_OS, Fresh: o.g.history == engine.HistoryMemory,
	}}
	n := o.rng.IntN(10)
	if o.g.storage.Crash == nil || n < 2 {
		return e
	}
	e.crash, e.unsynced = true, 100
	if n > 4 {
		e.unsynced = o.rng.IntN(100)
		e.opening.Survives = runnelv1.Durability_DURABILITY_DISK
	}
	return e
}

// gone reports whether what was just learned is void.
func (o *ordeal) gone() bool { return o.cut.Load() }

// countdown ends a round. Whoever counts to the end does the last thing on the spot: a crash hits in the middle of what is
// being done, right behind what was learned last.
type countdown struct {
	n    int64
	last func()
	done chan struct{}
}

func (c *countdown) count() {
	if atomic.AddInt64(&c.n, -1) == 0 {
		c.last()
		close(c.done)
	}
}
