package limit

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// publish tries until it is refused, and returns how many went through, and the refusal.
func publish(c *Client, namespace string, bytes, most int) (n int, refused *Error) {
	for ; n < most; n++ {
		if err := c.Publish(namespace, bytes); err != nil {
			errors.As(err, &refused)
			return n, refused
		}
	}
	return n, nil
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Client: Limits{Events: 10}, Subject: Limits{Events: 15}, Namespace: Limits{Bytes: 1000}, Namespaces: map[string]Limits{"free": {}}, Event: 100})
		a, b := l.Client("a", "s"), l.Client("b", "s")
		if n, err := publish(a, "free", 1, 100); n != 10 || err == nil || err.What != "events per second of this client" || err.Retry != 100*time.Millisecond {
			t.Errorf("client: %d, %+v", n, err)
		}
		// The client's bucket is not touched by what its subject is refused.
		if n, err := publish(b, "free", 1, 100); n != 5 || err == nil || err.What != "events per second of this subject" {
			t.Errorf("subject: %d, %+v", n, err)
		}
		time.Sleep(time.Second)
		if n, _ := publish(b, "free", 1, 100); n != 10 {
			t.Errorf("b after a second: %d", n)
		}
		time.Sleep(10 * time.Second)
		if n, err := publish(a, "bounded", 250, 100); n != 4 || err == nil || err.What != "bytes per second of this namespace" || err.Retry != 250*time.Millisecond {
			t.Errorf("namespace: %d, %+v", n, err)
		}
		// What comes behind a refused event waits with it, or it would overtake.
		if err := a.Publish("free", 1); err == nil {
			t.Error("overtaken")
		}
		time.Sleep(250 * time.Millisecond)
		if err := a.Publish("bounded", 250); err != nil {
			t.Error(err)
		}
	})
}

// A client that comes back finds its bucket as it left it, and one that stays away for long is forgotten.
func TestComingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Client: Limits{Events: 10}, Event: 100})
		c := l.Client("a", "")
		publish(c, "n", 1, 100)
		c.Close()
		c = l.Client("a", "")
		if n, _ := publish(c, "n", 1, 100); n != 0 {
			t.Errorf("%d events by coming back", n)
		}
		c.Close()
		for i := range 1000 {
			l.Client(fmt.Sprint(i), "").Close()
		}
		time.Sleep(2 * keepFor)
		l.Client("b", "").Close()
		if n := len(l.buckets); n > 2 {
			t.Errorf("%d buckets are kept", n)
		}
	})
}

func TestCounts(t *testing.T) {
	l := New(Config{Server: Limits{Sessions: 3}, Client: Limits{Sessions: 2, Subscriptions: 2}, Namespaces: map[string]Limits{"small": {Subscriptions: 1}}})
	a1, a2, a3, b1, b2 := l.Client("a", "s"), l.Client("a", "s"), l.Client("a", "s"), l.Client("b", ""), l.Client("b", "")
	for i, c := range []struct {
		c    *Client
		want string
	}{{a1, ""}, {a2, ""}, {a3, "too many sessions of this client"}, {b1, ""}, {b2, "too many sessions of this server"}} {
		err := c.c.Session()
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("session %d: %v", i, err)
		}
	}
	if err := a1.Subscribe("small"); err != nil {
		t.Fatal(err)
	}
	if err := b1.Subscribe("small"); err == nil || err.Error() != "too many subscriptions of this namespace" {
		t.Error(err)
	}
	if err := a2.Subscribe("other"); err != nil {
		t.Fatal(err)
	}
	if err := a1.Subscribe("other"); err == nil || err.Error() != "too many subscriptions of this client" {
		t.Error(err)
	}
	a1.Unsubscribe("small")
	a1.Unsubscribe("small") // once is enough
	if err := b1.Subscribe("small"); err != nil {
		t.Error(err)
	}
	for _, c := range []*Client{a1, a2, a3, b1, b2} {
		c.Close()
	}
	for k, b := range l.buckets {
		if b.refs != 0 || b.sessions != 0 || b.subscriptions != 0 {
			t.Errorf("%v is left with %+v", k, b)
		}
	}
}

// New limits hold for those who are there, and without any nothing is counted.
func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Client: Limits{Events: 1000}, Event: 100})
		c := l.Client("a", "")
		l.Set(Config{Client: Limits{Events: 5}, Event: 100})
		time.Sleep(time.Minute)
		if n, _ := publish(c, "n", 1, 100); n != 5 {
			t.Errorf("%d under the new limit", n)
		}
		l.Set(Config{})
		time.Sleep(time.Minute)
		if n, err := publish(c, "n", 1, 10_000); n != 10_000 {
			t.Errorf("%d without limits: %v", n, err)
		}
		c.Close()
		if New(Config{}).Client("a", "") != nil {
			t.Error("a client is counted, and nothing is limited")
		}
		var none *Limiter
		if c := none.Client("a", "b"); c.Session() != nil || c.Subscribe("n") != nil || c.Publish("n", 1) != nil {
			t.Error("nothing limits")
		}
	})
}
