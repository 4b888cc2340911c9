package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
)

// Storm is what came of many sessions that lost their connections at once.
type Storm struct {
	Sessions int `json:"sessions"`
	Dropped  int `json:"dropped"` // sessions that noticed
	Back     int `json:"back"`    // of those, connected again in time
	// From the moment of the cut until a session was connected again, in seconds.
	BackP50 float64 `json:"back_p50_s"`
	BackP99 float64 `json:"back_p99_s"`
	BackMax float64 `json:"back_max_s"`
	Dials   int     `json:"dials"`               // connections that these sessions' clients tried to open
	Refused int     `json:"refused"`             // those that nobody took, as those to a server that is gone
	Peak    int     `json:"accepted_peak_per_s"` // the most that was taken in any second, looked at in tenths
	Twice   int64   `json:"twice"`               // events that a session got again
	// Delay of events to the subscribers that nobody cut, p99 in milliseconds: before, until the last session was back, and after that.
	Before *float64 `json:"live_p99_before_ms"`
	During *float64 `json:"live_p99_during_ms"`
	After  *float64 `json:"live_p99_after_ms"`
}

const (
	stormEvery  = time.Second            // between events to each session that is to be cut
	stormTopics = 100                    // that these follow, one each, so that their events do not go to all of them at once
	stormWithin = time.Minute            // they have to be back
	stormTenth  = 100 * time.Millisecond // counts of connection attempts are for this long
	// stormPace is how many sessions connect per second at first: that is not what is measured.
	stormPace = 2000
	stormGC   = 400 // per cent of what all sessions take at first that they may take more until the collector runs: more than they do
)

// storm is a run of scenario storm.
type storm struct {
	*run
	live *neighbour

	mu       sync.Mutex
	conns    map[net.Conn]bool // of the sessions that are to be cut, where nobody is killed
	began    time.Time         // of the storm
	refused  int               // attempts since
	accepted map[int]int       // by tenth of a second since
	returned []time.Duration
	dropped  int
	twice    int64

	sent atomic.Int64 // events to those sessions: to their topics in turn
	lost atomic.Int64
}

// storm follows some topics with many sessions, cuts them all at once, and measures how they come back. With Options.Kill the server there is
// killed, whose clients they are; else their connections are closed.
func (r *run) storm(ctx context.Context) (*Result, error) {
	s := &storm{run: r, conns: map[net.Conn]bool{}, accepted: map[int]int{}}
	victim := Process{}
	others := r.o.Servers
	if r.o.Kill != "" {
		if victim = Listener(r.o.Kill); victim.PID == 0 {
			return nil, fmt.Errorf("cannot kill %s: no process of this machine that this user may see listens there", r.o.Kill)
		}
		others = slices.DeleteFunc(slices.Clone(others), func(a string) bool { return a == r.o.Kill })
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	fail := func(err error) error {
		cancel()
		return errors.Join(err, group.Wait())
	}
	var err error
	if s.live, err = r.o.neighbour(ctx, others); err != nil {
		return nil, fail(err)
	}
	defer s.live.stop() // if there is a measurement it has ended
	if r.o.Self != "" {
		yield() // the others' process does not
	}
	target := r.o.Kill
	if target == "" {
		target = strings.Join(r.o.Servers, ",")
	}
	crowd, err := s.crowd(ctx, &group, target)
	if err != nil {
		return nil, fail(err)
	}
	publishing, stop := context.WithCancel(ctx)
	var publishers errgroup.Group
	publishers.Go(func() error {
		defer stop() // a failure ends the phases
		return r.o.stampedEvents(publishing, others, s.topic, stormTopics*float64(time.Second)/float64(stormEvery), s.sent.Store)
	})
	began := s.mark()
	err = s.weather(publishing, crowd, victim)
	res := &Result{Subscribers: len(crowd) + s.o.Live, Rate: s.o.Rate}
	s.fill(res, began)
	stop()
	if err := errors.Join(publishers.Wait(), err); err != nil {
		return nil, fail(err)
	}
	s.settle(ctx, crowd)
	theirs, err := s.live.finish()
	res.Lost, res.Storm = s.lost.Load()+theirs.Lost, s.result(crowd, theirs)
	return res, fail(err)
}

// topic is that of event n, and of session n, both from 0.
func (s *storm) topic(n int64) string { return fmt.Sprintf("%s.storm.%d", s.o.Topic, n%stormTopics) }

// last is the number of the last event on a topic, from 1, when so many were sent in all.
func last(sent int64, topic int) int64 { return (sent - int64(topic) + stormTopics - 1) / stormTopics }

// weather is what happens: calm, the cut, the time until all are back or it is too late, and calm.
func (s *storm) weather(ctx context.Context, crowd []*refugee, victim Process) error {
	if !s.wait(ctx, "warming up", s.o.Warmup) {
		return ctx.Err()
	}
	if err := s.live.tell(calm); err != nil {
		return err
	}
	if !s.wait(ctx, "calm", s.o.Duration) {
		return ctx.Err()
	}
	// Clients of machines of their own are not all held up at once by one collector, to come in a burst after that.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(stormGC))
	if err := errors.Join(s.live.tell(raging), s.cut(victim)); err != nil {
		return err
	}
	for deadline := time.Now().Add(stormWithin); s.back() < len(crowd) && time.Now().Before(deadline); {
		if !s.wait(ctx, "storm", stormTenth) {
			return ctx.Err()
		}
	}
	if err := s.live.tell(past); err != nil {
		return err
	}
	if !s.wait(ctx, "calm again", s.o.Duration) {
		return ctx.Err()
	}
	return nil
}

// cut cuts all sessions at once.
func (s *storm) cut(victim Process) error {
	s.mu.Lock()
	s.began = time.Now()
	s.refused, s.accepted = 0, map[int]int{}
	conns := s.conns
	s.conns = map[net.Conn]bool{}
	s.mu.Unlock()
	if victim.PID != 0 {
		p, err := os.FindProcess(victim.PID)
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			return fmt.Errorf("cannot kill %s (process %d): %w", s.o.Kill, victim.PID, err)
		}
		return nil
	}
	for c := range conns {
		c.Close() // it may be closed already
	}
	return nil
}

// dial counts attempts, and keeps connections to cut them.
func (s *storm) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.refused++
		return nil, err
	case s.o.Kill == "":
		s.conns[conn] = true
	}
	s.accepted[int(time.Since(s.began)/stormTenth)]++ // those before the cut are forgotten then
	return conn, nil
}

// stampedEvents publishes to one of the servers at a rate until ctx ends. Events are stamped and numbered from 0; topic has that of each, and
// published is told how many there are.
func (o *Options) stampedEvents(ctx context.Context, servers []string, topic func(n int64) string, rate float64, published func(n int64)) error {
	c, err := o.sdkClient(servers)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.Publisher(ctx)
	if err != nil {
		return ended(ctx, err)
	}
	pacer := NewPacer(rate)
	for n := int64(0); ; n++ {
		due, err := pacer.Next(ctx)
		if err != nil {
			break
		}
		payload := make([]byte, max(o.Payload, 2*StampSize)) // it is the publisher's until the event is acknowledged
		Stamp(payload, due)
		binary.LittleEndian.PutUint64(payload[StampSize:], uint64(n))
		if _, err := p.Publish(context.WithoutCancel(ctx), topic(n), payload); err != nil {
			return fmt.Errorf("publishing: %s", status.Convert(err).Message())
		}
		published(n + 1)
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if err := p.Close(closing); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	return nil
}

func (o *Options) sdkClient(servers []string, opts ...runnel.Option) (*runnel.Client, error) {
	opts = append(opts, runnel.WithToken(o.Token), runnel.WithCompression(o.Compression), runnel.WithConnectTimeout(stormWithin))
	return runnel.Dial(strings.Join(servers, ","), opts...)
}

// refugee is a session that is to be cut.
type refugee struct {
	first, last int64 // numbers of events, guarded by the storm's mu
	lost        int64
	away        bool
}

// crowd opens the sessions that are to be cut, a share of them on each client.
func (s *storm) crowd(ctx context.Context, group *errgroup.Group, target string) ([]*refugee, error) {
	n := s.o.Connections
	if n == 0 || n > s.o.Subscribers {
		n = s.o.Subscribers
	}
	clients := make([]*runnel.Client, n)
	for i := range clients {
		c, err := s.o.sdkClient([]string{target}, runnel.WithDialOptions(grpc.WithContextDialer(s.dial)))
		if err != nil {
			return nil, err
		}
		clients[i] = c
		group.Go(func() error {
			<-ctx.Done()
			return c.Close()
		})
	}
	all := make([]*refugee, s.o.Subscribers)
	var opening errgroup.Group
	opening.SetLimit(atOnce)
	pacer := NewPacer(stormPace)
	for i := range all {
		if _, err := pacer.Next(ctx); err != nil {
			break
		}
		one := &refugee{}
		all[i] = one
		opening.Go(func() error {
			session, err := clients[i%n].Session(ctx, runnel.OnState(func(now runnel.State) { s.turned(one, now) }))
			if err != nil {
				return fmt.Errorf("session %d: %w", i+1, err)
			}
			sub, err := session.Subscribe(ctx, s.topic(int64(i)), runnel.From(runnel.New()))
			if err != nil {
				return fmt.Errorf("session %d: %w", i+1, err)
			}
			group.Go(func() error { return s.follow(ctx, one, sub) })
			return nil
		})
		if i%100 == 0 {
			s.o.Progress("connecting", float64(i)/float64(len(all)))
		}
	}
	if err := errors.Join(opening.Wait(), ctx.Err()); err != nil {
		return nil, err
	}
	return all, nil
}

func (s *storm) follow(ctx context.Context, one *refugee, sub *runnel.Subscription) error {
	for ev, err := range sub.Events(ctx) {
		var e *runnel.Error
		if errors.As(err, &e) && e.Notice != nil {
			continue // the numbers tell what is missing
		}
		if err != nil {
			return ended(ctx, err)
		}
		if len(ev.Payload) < 2*StampSize {
			continue // not ours
		}
		n := int64(binary.LittleEndian.Uint64(ev.Payload[StampSize:]))/stormTopics + 1
		s.mu.Lock()
		switch {
		case one.first == 0:
			one.first = n
		case n <= one.last:
			s.twice++
		default:
			one.lost += n - one.last - 1
		}
		one.last = max(one.last, n)
		s.mu.Unlock()
		s.delivered.Add(1)
	}
	return nil
}

// turned notes that a session has lost its connection, or is back.
func (s *storm) turned(one *refugee, now runnel.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.began.IsZero():
	case now == runnel.StateConnecting && !one.away:
		one.away = true
		s.dropped++
	case now == runnel.StateLive && one.away:
		one.away = false
		s.returned = append(s.returned, time.Since(s.began))
	}
}

func (s *storm) back() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.returned)
}

// settle waits until each session has the last event, as long as something comes, and counts what has not come.
func (s *storm) settle(ctx context.Context, crowd []*refugee) {
	const patience = 5 * time.Second
	sent := s.sent.Load()
	missing := func() (n int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, one := range crowd {
			want := last(sent, i%stormTopics)
			if one.first == 0 {
				n += want // it followed before the first was published
				continue
			}
			n += one.lost + max(want-one.last, 0)
		}
		return n
	}
	for last, since := int64(-1), time.Now(); ; {
		n := missing()
		s.lost.Store(n)
		if n != last {
			last, since = n, time.Now()
		}
		if n == 0 || time.Since(since) > patience || !s.wait(ctx, "waiting for the last", 10*time.Millisecond) {
			return
		}
	}
}

func (s *storm) result(crowd []*refugee, theirs lived) *Storm {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Storm{Sessions: len(crowd), Dropped: s.dropped, Back: len(s.returned), Twice: s.twice}
	slices.Sort(s.returned)
	if n := len(s.returned); n > 0 {
		st.BackP50, st.BackP99, st.BackMax = s.returned[n/2].Seconds(), s.returned[n*99/100].Seconds(), s.returned[n-1].Seconds()
	}
	st.Refused, st.Dials = s.refused, s.refused
	for tenth, n := range s.accepted {
		st.Dials += n
		second := 0
		for i := range int(time.Second / stormTenth) {
			second += s.accepted[tenth+i]
		}
		st.Peak = max(st.Peak, second)
	}
	st.Before, st.During, st.After = theirs.P99[calm], theirs.P99[raging], theirs.P99[past]
	return st
}
