package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
)

const clients = 8 // publishers, and followers

// ledger is what publishers were promised and what followers saw. All but pace is guarded by mu.
type ledger struct {
	pace time.Duration // of 50 events of a publisher

	mu    sync.Mutex
	at    map[uint64]string // by offset: what anybody was ever told is there
	acked map[string]uint64
	sent  [clients]int // acknowledged, by publisher
	seen  [clients]int // by follower
	wrong []string
	// Since the last call of mark: when each publisher was last told something and each follower last saw something, and for how long they
	// had to wait at most.
	told, saw wait
}

// wait is how long each of the clients has waited for its next event.
type wait struct {
	last    [clients]time.Time
	longest [clients]time.Duration
}

func (w *wait) noted(i int) {
	now := time.Now()
	w.longest[i] = max(w.longest[i], now.Sub(w.last[i]))
	w.last[i] = now
}

// most is the longest that any has waited, or still does.
func (w *wait) most() (d time.Duration) {
	for i, last := range w.last {
		d = max(d, w.longest[i], time.Since(last))
	}
	return d
}

// mark begins to look at how long clients wait.
func (l *ledger) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told, l.saw = wait{}, wait{}
	for i := range clients {
		l.told.last[i], l.saw.last[i] = time.Now(), time.Now()
	}
}

// waits is for how long a publisher and a follower have waited at most since mark.
func (l *ledger) waits() (publishers, followers time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told.most(), l.saw.most()
}

// newLedger returns an empty one. The load is one that whoever keeps the events bears on the same machine, beside clients and servers: the tests
// are about the kills.
func newLedger(nats bool) *ledger {
	l := &ledger{at: map[uint64]string{}, acked: map[string]uint64{}, pace: 5 * time.Millisecond}
	if nats {
		l.pace = 50 * time.Millisecond
	}
	return l
}

func (l *ledger) thereLocked(who string, offset uint64, what string) {
	if was, ok := l.at[offset]; ok && was != what {
		l.wrong = append(l.wrong, fmt.Sprintf("%s: offset %d is %s, and was %s", who, offset, what, was))
	}
	l.at[offset] = what
}

func (l *ledger) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// TestCrash kills the server again and again under eight publishers and eight followers. What was acknowledged is there, nobody gets
// anything twice, no offset means two things, and no position that was handed out is refused. RUNNEL_CRASH=1: 100 kills, else few.
func TestCrash(t *testing.T) {
	t.Parallel()
	onEngines(t, testCrash)
}

func testCrash(t *testing.T, settings []string) {
	kills := 3
	if settings != nil {
		kills = 1 // TestCluster has more
	}
	if os.Getenv("RUNNEL_CRASH") != "" {
		kills = 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d kills, seed %d", kills, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := &process{t: t, binary: binary(t), addr: freeAddress(t), data: t.TempDir(), env: settings}
	p.start()
	t.Cleanup(func() { p.kill() })

	l := newLedger(settings != nil)
	finish := l.load(t, p.addr)
	for range kills {
		l.awaitProgress(t)
		time.Sleep(time.Duration(50+rng.IntN(400)) * time.Millisecond) // the moment of the kill is what is random here
		p.kill()
		p.start()
	}
	finish()
}

// load has publishers and followers at work on servers until finish, which waits until all is there and reports.
func (l *ledger) load(t *testing.T, servers string) (finish func()) {
	ctx, stop := context.WithCancel(t.Context())
	following, unfollow := context.WithCancel(t.Context())
	var publishers, followers sync.WaitGroup
	for i := range clients {
		publishers.Go(func() { l.publish(ctx, servers, i) })
		followers.Go(func() { l.follow(following, servers, i) })
	}
	return func() {
		stop()
		publishers.Wait()
		l.awaitFollowers(t)
		unfollow()
		followers.Wait()
		l.report(t)
	}
}

func (l *ledger) report(t *testing.T) {
	for what, offset := range l.acked {
		if l.at[offset] != what {
			l.complain("acknowledged event %s at %d is lost: %q is there", what, offset, l.at[offset])
		}
	}
	for _, w := range l.wrong[:min(20, len(l.wrong))] {
		t.Error(w)
	}
	if len(l.acked) == 0 {
		t.Error("nothing was published")
	}
	t.Logf("%d events acknowledged, %d seen by followers, %d mistakes", len(l.acked), sum(l.seen[:]), len(l.wrong))
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}

func dial(addr, id string) (*runnel.Client, error) {
	return runnel.Dial(addr, runnel.WithConnectTimeout(time.Minute), runnel.WithClientID(id))
}

// publish counts up on a topic of its own until ctx ends, then waits for what is on its way.
func (l *ledger) publish(ctx context.Context, addr string, i int) {
	c, err := dial(addr, fmt.Sprintf("publisher-%d", i))
	if err != nil {
		l.complain("%v", err)
		return
	}
	defer c.Close()
	background := context.WithoutCancel(ctx)
	pub, err := c.Publisher(background)
	if err != nil {
		l.complain("publisher %d: %v", i, err)
		return
	}
	defer pub.Close(background)
	type sent struct {
		what    string
		receipt *runnel.Receipt
	}
	all := make(chan sent, 4096)
	var group sync.WaitGroup
	defer group.Wait()
	defer close(all)
	group.Go(func() {
		for s := range all {
			ack, err := s.receipt.Wait(background)
			if err != nil {
				l.complain("publish %s: %v", s.what, err)
				continue
			}
			l.mu.Lock()
			l.thereLocked("publisher", ack.Position.Offset, s.what)
			l.acked[s.what] = ack.Position.Offset
			l.sent[i]++
			l.told.noted(i)
			l.mu.Unlock()
		}
	})
	for n := 0; ctx.Err() == nil; n++ {
		what := fmt.Sprintf("%d/%d", i, n)
		r, err := pub.Publish(background, fmt.Sprintf("load.p%d", i), []byte(what))
		if err != nil {
			l.complain("publish %s: %v", what, err)
			return
		}
		all <- sent{what, r}
		if n%50 == 49 {
			time.Sleep(l.pace)
		}
	}
}

// follow reads everything, or one publisher's topic, and checks that nothing is missing or twice: publishers count.
func (l *ledger) follow(ctx context.Context, addr string, i int) {
	c, err := dial(addr, fmt.Sprintf("follower-%d", i))
	if err != nil {
		l.complain("%v", err)
		return
	}
	defer c.Close()
	pattern := "load.>"
	if i%2 == 1 {
		pattern = fmt.Sprintf("load.p%d", i)
	}
	sub, err := c.Subscribe(ctx, pattern, runnel.From(runnel.Earliest()))
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		l.complain("follower %d: %v", i, err)
		return
	}
	last, next := uint64(0), map[string]int{}
	for e, err := range sub.Events(ctx) {
		if ctx.Err() != nil || errors.Is(err, runnel.ErrClosed) {
			return
		}
		if err != nil {
			l.complain("follower %d: %v", i, err)
			return
		}
		if e.Position.Offset <= last {
			l.complain("follower %d: offset %d after %d", i, e.Position.Offset, last)
		}
		last = e.Position.Offset
		if want := fmt.Sprintf("%s/%d", e.Topic[len("load.p"):], next[e.Topic]); string(e.Payload) != want {
			l.complain("follower %d: %s at %d, want %s", i, e.Payload, last, want)
		}
		next[e.Topic]++
		l.mu.Lock()
		l.thereLocked(fmt.Sprintf("follower %d", i), last, string(e.Payload))
		l.seen[i]++
		l.saw.noted(i)
		l.mu.Unlock()
	}
}

// awaitProgress waits until every publisher and follower has got further: a kill is to hit clients that are at work.
func (l *ledger) awaitProgress(t *testing.T) {
	l.mu.Lock()
	sent, seen := l.sent, l.seen
	l.mu.Unlock()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // polling what other goroutines count
		l.mu.Lock()
		var stuck []string
		for i := range clients {
			if l.sent[i] <= sent[i] {
				stuck = append(stuck, fmt.Sprintf("publisher %d", i))
			}
			if l.seen[i] <= seen[i] {
				stuck = append(stuck, fmt.Sprintf("follower %d", i))
			}
		}
		wrong := len(l.wrong)
		l.mu.Unlock()
		if len(stuck) == 0 || wrong > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("these get nowhere: %s", strings.Join(stuck, ", "))
		}
	}
}

// awaitFollowers waits until every follower has everything.
func (l *ledger) awaitFollowers(t *testing.T) {
	for deadline := time.Now().Add(time.Minute); ; {
		l.mu.Lock()
		behind := ""
		for i, got := range l.seen {
			want := len(l.acked)
			if i%2 == 1 {
				want = l.sent[i]
			}
			if got < want {
				behind = fmt.Sprintf("follower %d has %d of %d events", i, got, want)
			}
		}
		wrong := len(l.wrong)
		l.mu.Unlock()
		if behind == "" || wrong > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Error(behind)
			return
		}
		time.Sleep(20 * time.Millisecond) // polling what other goroutines count
	}
}
