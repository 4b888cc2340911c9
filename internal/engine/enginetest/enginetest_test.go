package enginetest

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

// A correct engine passes.
func TestModel(t *testing.T) { Run(t, modelFactory("")) }

// planted says which case, for which kind of history, notices each broken variant of the model.
var planted = []struct {
	bug     bug
	history engine.History
	caught  string
}{
	{"offsets begin at 0", engine.HistoryDisk, "offsets rise from 1"},
	{"time is the clock's", engine.HistoryDisk, "timestamps never fall"},
	{"namespaces share a log", engine.HistoryOS, "namespaces"},
	{"ordered goes on", engine.HistoryMemory, "an ordered append stops at a failure"},
	{"expectation ignores what is pending", engine.HistoryDisk, "conditional sees what is pending"},
	{"expectation of trimmed events", engine.HistoryDisk, "conditional after trimming"},
	{"ids of all topics are one", engine.HistoryNone, "an id is stored once"},
	{"ids of one call not compared", engine.HistoryDisk, "an id is stored once"},
	{"ids forgotten at a restart", engine.HistoryDisk, "ids outlive a restart"},
	{"ids forgotten at a restart", engine.HistoryOS, "ids outlive a crash"},
	{"ids forgotten at a restart", engine.HistoryDisk, "fault run"},
	{"ids trimmed with their events", engine.HistoryDisk, "ids outlive trimming"},
	{"a conflict wins over a duplicate", engine.HistoryDisk, "a duplicate wins over a conflict"},
	{"the window never ends", engine.HistoryNone, "the window ends"},
	{"the window never ends", engine.HistoryDisk, "the window ends across a restart"},
	{"ids without bound", engine.HistoryDisk, "the number of ids is bounded"},
	{"visible before commit", engine.HistoryDisk, "fault run"},
	{"ack before commit", engine.HistoryDisk, "what is acknowledged outlives a power loss"},
	{"ack before commit", engine.HistoryDisk, "fault run"},
	{"a tail skips one at the seam", engine.HistoryDisk, "a tail sees nothing twice and misses nothing"},
	{"a tail repeats the last event of a page", engine.HistoryDisk, "a tail begins behind its start"},
	{"a tail hides what was trimmed", engine.HistoryDisk, "a tail that retention overtakes is told"},
	{"a tail goes on into the next epoch", engine.HistoryDisk, "a failed write is never acknowledged"},
	{"a closed tail sleeps on", engine.HistoryNone, "Close ends a waiting Next"},
	{"closing forgets the tails", engine.HistoryDisk, "closing the engine ends tails"},
	{"a closed engine goes on", engine.HistoryDisk, "a closed engine"},
	{"a goroutine is left", engine.HistoryNone, "state"},
	{"trimming makes a silent hole", engine.HistoryDisk, "reading below the oldest"},
	{"trimming makes a silent hole", engine.HistoryDisk, "fault run with retention"},
	{"trimmed while it is read", engine.HistoryMemory, "reading what is trimmed meanwhile"},
	{"retention by events ignored", engine.HistoryDisk, "retention by events"},
	{"retention by bytes ignored", engine.HistoryDisk, "retention by bytes"},
	{"retention by age ignored", engine.HistoryDisk, "retention by age"},
	{"trimming by hand goes back", engine.HistoryDisk, "trimming by hand"},
	{"a full page claims the rest", engine.HistoryDisk, "reading by position and pattern"},
	{"pages without bound", engine.HistoryDisk, "reading by position and pattern"},
	{"scans without bound", engine.HistoryDisk, "a scan is bounded"},
	{"ReadAt hides what is gone", engine.HistoryDisk, "ReadAt of trimmed offsets"},
	{"LastOffsets ignores upTo", engine.HistoryDisk, "LastOffsets"},
	{"AfterLast is one off", engine.HistoryDisk, "AfterLast"},
	{"BeforeTime leaves out the moment itself", engine.HistoryDisk, "BeforeTime"},
	{"Topics begins at the name", engine.HistoryDisk, "Topics"},
	{"Topics never says more", engine.HistoryDisk, "Topics"},
	{"every position is good", engine.HistoryDisk, "Check"},
	{"epoch ignored", engine.HistoryOS, "positions of what was lost are refused"},
	{"epoch ignored", engine.HistoryOS, "fault run"},
	{"epoch kept over a restart", engine.HistoryDisk, "positions outlive restarts"},
	{"epoch kept over a restart", engine.HistoryOS, "an older copy is noticed"},
	{"old epochs forgotten", engine.HistoryDisk, "positions outlive restarts"},
	{"old epochs forgotten", engine.HistoryDisk, "fault run"},
	{"memory outlives a restart", engine.HistoryMemory, "nothing outlives a restart"},
	{"no epoch after a failure", engine.HistoryDisk, "a failed write is never acknowledged"},
	{"a failed sync is acknowledged", engine.HistoryDisk, "a failed write is never acknowledged"},
	{"deleting only in memory", engine.HistoryDisk, "a deletion outlives a restart"},
	{"deleting only in memory", engine.HistoryOS, "a deletion outlives a crash"},
	{"deleting only what is open", engine.HistoryDisk, "deleting what is no longer configured"},
	{"deleting keeps the epochs", engine.HistoryDisk, "a deleted namespace begins anew"},
	{"deleting keeps the ids", engine.HistoryDisk, "a deleted namespace begins anew"},
	{"deleting empties the log", engine.HistoryDisk, "the log of a deleted namespace is over"},
	{"deleting forgets the tails", engine.HistoryNone, "deleting ends tails"},
	{"a deleted log goes on", engine.HistoryMemory, "the log of a deleted namespace is over"},
	{"a deleted log goes on", engine.HistoryMemory, "deleting under load"},
	{"a full disk is not noticed", engine.HistoryDisk, "a full disk refuses, and recovers"},
}

// Each broken engine fails the case that is there for it. A case that depends on chance has some attempts.
func TestPlantedBugsAreCaught(t *testing.T) {
	for _, p := range planted {
		t.Run(fmt.Sprintf("%s/%s", p.bug, p.caught), func(t *testing.T) {
			all := cases()
			i := slices.IndexFunc(all, func(c testCase) bool { return c.name == p.caught })
			if i < 0 || !all[i].appliesTo(p.history, needClock|needCrash|needFail|needFull|needInside|needIDBound|needDisturb) {
				t.Fatalf("there is no case %q for history %s", p.caught, p.history)
			}
			for range 200 { // most are caught by the first; one that an attempt finds in six would get by 20 once in 40 runs
				if failures := attempt(t, modelFactory(p.bug), p.history, all[i]); len(failures) > 0 {
					t.Log(failures[0])
					return
				}
			}
			t.Error("not caught")
		})
	}
}

// attempt runs a case in a bubble, where waiting for what never comes takes no time, and returns its failures.
func attempt(t *testing.T, f Factory, h engine.History, c testCase) []string {
	r := &failures{T: t}
	synctest.Test(t, func(t *testing.T) {
		r.ctx = t.Context()
		var group sync.WaitGroup
		group.Go(func() {
			defer r.cleanup()
			runCase(r, f, h, c)
		})
		group.Wait()
		time.Sleep(2 * time.Hour) // a bubble may not be left before its goroutines
	})
	return r.list
}

// failures is a TB that records failures.
type failures struct {
	*testing.T
	ctx context.Context

	mu       sync.Mutex
	list     []string
	cleanups []func()
}

func (r *failures) Context() context.Context { return r.ctx }

func (r *failures) Logf(string, ...any) {}

func (r *failures) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprintf(format, args...))
}

func (r *failures) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *failures) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *failures) cleanup() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}
