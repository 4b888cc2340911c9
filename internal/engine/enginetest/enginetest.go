// Package enginetest is the conformance suite: what every engine must do, as tests. An engine's own test calls Run with a
// Factory that says how to open it, how to lose its power and how to make its disk fail; cases that need what the factory cannot
// do are left out, and each kind of history is held to what it promises.
//
// A case looks at one sentence of the contract in package engine. The fault runs at the end do everything at once, with
// publishers, readers and tails running through power losses, restarts, failing writes and disturbances, and hand what happened to package
// history. They print their seed when they fail; RUNNEL_SEED repeats one, and RUNNEL_ROUNDS sets how many rounds there are.
//
// The suite itself is proved by its own tests: a simple engine passes it, and each of many broken variants of that engine
// fails it.
package enginetest

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
)

// TB is what a case needs of a test. *testing.T has it; the proof of the suite uses one that records failures.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
	TempDir() string
}

// Factory makes what is tested.
type Factory struct {
	// Histories are the kinds of history that the engine has.
	Histories []engine.History
	// Storage returns new, empty storage.
	Storage func(t TB) Storage
	// Clock says that the engine takes its time from Options.Now.
	Clock bool
	// External says that logs live outside the process: closing an engine and opening it again changes neither their epochs nor
	// what is kept in memory.
	External bool
	// IDsByWindow says that ids of events that are kept are forgotten with time alone, however many there are.
	IDsByWindow bool
	// Durability is what an acknowledgement means; nil: what the kind of history promises by its name.
	Durability func(engine.History) runnelv1.Durability
	// Patience is how long a case may take; 0: a minute.
	Patience time.Duration
	// Leaks reports goroutines that were left behind, where the process has others that come and go; nil: every one that was
	// not there before counts.
	Leaks func() error
}

func (f Factory) durability(h engine.History) runnelv1.Durability {
	if f.Durability != nil {
		return f.Durability(h)
	}
	return h.Durability()
}

// Storage is where an engine keeps its logs. It outlives the engines that are opened on it. All but Open may be nil.
type Storage struct {
	// Open opens an engine. The suite has at most one open on a storage, and closes it.
	Open func(o Options) (engine.Engine, error)
	// Crash returns the storage as it would be found after a crash at this moment, while the engine goes on unharmed: all that
	// was synced, and of all that was written without being synced the given percentage; 100 is the death of the process, less
	// is a power loss.
	Crash func(unsynced int, rng *rand.Rand) Storage
	// Fail makes the storage fail: after the given number of further writes and syncs, that many fail with an I/O error.
	Fail func(after, times int)
	// Full takes all free space away, or gives it back.
	Full func(full bool)
	// Disturb breaks something that the engine can get over without ending, and mends it. Meanwhile appends may fail with
	// ErrStorageFailed or ErrUnavailable, and reads with ErrUnavailable.
	Disturb func(rng *rand.Rand)
}

// Options are how an engine is to be opened.
type Options struct {
	Namespace func(name string) (engine.Config, bool)
	Now       func() time.Time // always set; see Factory.Clock
}

// need is what a case asks of a factory.
type need int

const (
	needClock need = 1 << iota
	needCrash
	needFail
	needFull
	needDisturb
	needInside  // logs end with the process that has them open, or get a new epoch
	needIDBound // the number of ids is bounded
)

// testCase is one case, run once for each kind of history in kinds.
type testCase struct {
	name  string
	kinds []engine.History
	need  need
	run   func(*rig)
}

var (
	all     = []engine.History{engine.HistoryDisk, engine.HistoryOS, engine.HistoryMemory, engine.HistoryNone}
	kept    = all[:3] // events can be read
	durable = all[:2] // events outlive the process
	synced  = all[:1] // events outlive a power loss
	memory  = all[2:3]
	none    = all[3:]
)

func cases() []testCase {
	return slices.Concat(
		appendCases, dedupCases, readCases, topicCases, retentionCases, tailCases, deleteCases, restartCases, crashCases, failureCases, faultRuns,
	)
}

// Run tests an engine against the contract.
func Run(t *testing.T, f Factory) {
	for _, h := range f.Histories {
		t.Run(string(h), func(t *testing.T) {
			for _, c := range cases() {
				if c.appliesTo(h, f.needs(t, h)) {
					t.Run(c.name, func(t *testing.T) { runCase(t, f, h, c) })
				}
			}
		})
	}
}

// RunFaults is Run with the fault runs alone.
func RunFaults(t *testing.T, f Factory) {
	for _, h := range f.Histories {
		for _, c := range faultRuns {
			if c.appliesTo(h, f.needs(t, h)) {
				t.Run(string(h)+"/"+c.name, func(t *testing.T) { runCase(t, f, h, c) })
			}
		}
	}
}

func (c testCase) appliesTo(h engine.History, offered need) bool {
	return slices.Contains(c.kinds, h) && c.need&^offered == 0
}

// needs is what the factory can do for a kind of history.
func (f Factory) needs(t TB, h engine.History) need {
	s := f.Storage(t)
	var n need
	for bit, ok := range map[need]bool{
		needClock: f.Clock, needCrash: s.Crash != nil, needFail: s.Fail != nil, needFull: s.Full != nil, needInside: !f.External, needDisturb: s.Disturb != nil,
		needIDBound: !f.IDsByWindow || h == engine.HistoryNone,
	} {
		if ok {
			n |= bit
		}
	}
	return n
}
