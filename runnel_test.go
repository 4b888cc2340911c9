package runnel_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func publish(t *testing.T, c *runnel.Client, topic string, from, n int) {
	t.Helper()
	p, err := c.Publisher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := p.Publish(t.Context(), topic, fmt.Append(nil, from+i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// expect reads n events whose payloads count from from.
func expect(t *testing.T, sub *runnel.Subscription, from, n int) {
	t.Helper()
	for i := range n {
		e, err := sub.Next(t.Context())
		if err != nil {
			t.Fatalf("event %d: %v", from+i, err)
		}
		if string(e.Payload) != fmt.Sprint(from+i) {
			t.Fatalf("got %s, want %d", e.Payload, from+i)
		}
	}
}

func TestPublishAndFollow(t *testing.T) {
	c := runneltest.Start(t)
	ctx := t.Context()
	ack, err := c.Publish(ctx, "quotes.AAPL", []byte("0"), runnel.Key("k"), runnel.Header("h", "v"), runnel.ContentType("text/plain"), runnel.ID("one"))
	durability := "DISK"
	if os.Getenv("RUNNEL_TEST_NATS") != "" {
		durability = "OS" // of one replica no more is known
	}
	if err != nil || ack.Position.Offset != 1 || ack.Durability != durability || len(ack.Position.Epoch) != 16 {
		t.Fatalf("%+v, %v", ack, err)
	}
	again, err := c.Publish(ctx, "quotes.AAPL", []byte("0"), runnel.ID("one"))
	if err != nil || !again.Duplicate || again.Position != ack.Position {
		t.Fatalf("%+v, %v", again, err)
	}
	sub, err := c.Subscribe(ctx, "quotes.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	publish(t, c, "quotes.AAPL", 1, 3000)
	e, err := sub.Next(ctx)
	if err != nil || e.Key != "k" || e.Headers["h"] != "v" || e.ContentType != "text/plain" || e.ID != "one" || e.Topic != "quotes.AAPL" {
		t.Fatalf("%+v, %v", e, err)
	}
	expect(t, sub, 1, 3000)
	if p := sub.Position(); p != (runnel.Position{Epoch: ack.Position.Epoch, Offset: 3001}) {
		t.Errorf("position %v", p)
	}
	n := 0
	for e, err := range c.History(ctx, "quotes.AAPL", runnel.Limit(2500)) {
		if err != nil || e.Position.Offset != uint64(n+1) {
			t.Fatalf("%+v, %v", e, err)
		}
		n++
	}
	if n != 2500 {
		t.Errorf("history has %d events", n)
	}
	topic, err := c.Topic(ctx, "quotes.AAPL")
	if err != nil || topic.Newest != 3001 || topic.Oldest != 1 || string(topic.Last.Payload) != "3000" {
		t.Errorf("%+v, %v", topic, err)
	}
	for topic, err := range c.Topics(ctx, "quotes.*") {
		if err != nil || topic.Name != "quotes.AAPL" {
			t.Errorf("%+v, %v", topic, err)
		}
	}
}

// A server that goes away and comes back costs its followers and publishers nothing but time.
func TestRestart(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{})
	c := s.Client(runnel.WithConnectTimeout(30 * time.Second))
	sub, err := c.Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	quiet, err := c.Subscribe(t.Context(), "a.quiet")
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	const rounds, each = 4, 500
	var group sync.WaitGroup
	group.Go(func() {
		for i := range rounds {
			publish(t, c, "a.b", i*each, each)
		}
	})
	for i := range rounds {
		expect(t, sub, i*each, each/2)
		s.Stop()
		s.Start()
		expect(t, sub, i*each+each/2, each/2)
	}
	group.Wait()
	publish(t, c, "a.quiet", 0, 1)
	expect(t, quiet, 0, 1)
}

func TestErrors(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {}, "n": {History: "none"}}})
	c := s.Client()
	ctx := t.Context()
	reason := func(err error) string {
		var e *runnel.Error
		if !errors.As(err, &e) {
			t.Errorf("not an *Error: %v", err)
			return ""
		}
		return e.Code.String() + " " + e.Reason
	}
	_, err := c.Publish(ctx, "b.c", nil)
	if got := reason(err); got != "NotFound UNKNOWN_NAMESPACE" {
		t.Error(got)
	}
	_, err = c.Publish(ctx, "a..c", nil)
	if got := reason(err); got != "InvalidArgument INVALID_FIELD" {
		t.Error(got)
	}
	_, err = c.Publish(ctx, "a.c", make([]byte, 1<<20+1))
	if got := reason(err); got != "ResourceExhausted TOO_LARGE" {
		t.Error(got)
	}
	_, err = c.Publish(ctx, "a.c", nil, runnel.Expect(7))
	if got := reason(err); got != "Aborted OFFSET_CONFLICT" {
		t.Error(got)
	}
	for start, want := range map[runnel.Start]string{
		runnel.After(runnel.Position{Epoch: "0123456789abcdef", Offset: 0}): "FailedPrecondition EPOCH_CHANGED",
		runnel.After(runnel.Position{Offset: 99}):                           "FailedPrecondition EPOCH_CHANGED",
		runnel.Since(time.Now().Add(time.Hour)):                             "InvalidArgument INVALID_FIELD",
		runnel.LastN(0):                                                     "InvalidArgument INVALID_FIELD",
	} {
		_, err := c.Subscribe(ctx, "a.>", runnel.From(start))
		if got := reason(err); got != want {
			t.Errorf("%v: %s", start, got)
		}
	}
	_, err = c.Subscribe(ctx, "n.>", runnel.Overflow(runnel.CatchUp))
	if got := reason(err); got != "InvalidArgument INVALID_FIELD" {
		t.Error(got)
	}
	_, err = c.Subscribe(ctx, "*.x")
	if got := reason(err); got != "InvalidArgument INVALID_FIELD" {
		t.Error(got)
	}
	u, err := c.Upload(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		name := "a.bulk"
		if i == 7 {
			name = "bad topic"
		}
		if err = u.Send(name, nil); err != nil {
			break
		}
	}
	if err == nil {
		_, err = u.Close()
	}
	var e *runnel.Error
	if !errors.As(err, &e) || e.Code != codes.InvalidArgument || e.Summary == nil || e.Summary.FirstFailed != 7 || e.Summary.Accepted != 7 {
		t.Errorf("bulk: %+v, %v", e, err)
	}
	dead, err := runnel.Dial("127.0.0.1:1", runnel.WithConnectTimeout(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	if _, err := dead.Subscribe(ctx, "a.>"); reason(err) != "Unavailable " {
		t.Error(err)
	}
}

func TestStartPositions(t *testing.T) {
	c := runneltest.Start(t)
	ctx := t.Context()
	for i := range 10 {
		if _, err := c.Publish(ctx, fmt.Sprintf("a.t%d", i%3), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]struct {
		start runnel.Start
		got   string
	}{
		"last":     {runnel.Last(), "[7 8 9 10]"},
		"last n":   {runnel.LastN(2), "[8 9 10]"},
		"after":    {runnel.After(runnel.Position{Offset: 7}), "[7 8 9 10]"},
		"earliest": {runnel.Earliest(), "[0 1 2 3 4 5 6 7 8 9 10]"},
		"since":    {runnel.Since(time.UnixMilli(1)), "[0 1 2 3 4 5 6 7 8 9 10]"},
		"new":      {runnel.New(), "[10]"},
	} {
		t.Run(name, func(t *testing.T) {
			sub, err := c.Subscribe(ctx, "a.*", runnel.From(want.start))
			if err != nil {
				t.Fatal(err)
			}
			defer sub.Close()
			if _, err := c.Publish(ctx, "a.end", []byte("10"), runnel.ID(name)); err != nil {
				t.Fatal(err)
			}
			var got []string
			for e, err := range sub.Events(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Topic == "a.end" && e.ID != name {
					continue // another case's
				}
				if got = append(got, string(e.Payload)); e.ID == name {
					break
				}
			}
			if name == "last n" { // counts the other cases' last events
				return
			}
			if fmt.Sprint(got) != want.got {
				t.Errorf("%v, want %s", got, want.got)
			}
		})
	}
}
