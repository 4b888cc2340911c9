package session_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/session"
)

// controls takes a frame, if there is one, and returns its controls.
func controls(t *testing.T, s *session.Session) []*runnelv1.Control {
	t.Helper()
	f := new(session.Frame)
	err := s.Next(f, 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	if f.Bytes == 0 {
		return nil
	}
	var b []byte
	for _, slice := range f.Slices {
		b = append(b, slice...)
	}
	m := new(runnelv1.StreamResponse)
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	s.Sent()
	return m.GetControls()
}

func TestHeartbeatsAndSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, session.Config{
			MaxSubscriptions: 1, Heartbeat: 15 * time.Second, Silence: time.Minute, SendTimeout: 30 * time.Second, Replayer: session.NewReplayer(),
		})
		began := time.Now()
		beats := 0
		for {
			<-s.Ready()
			if s.Err() != nil {
				break
			}
			for _, c := range controls(t, s) {
				if c.GetHeartbeat() != nil {
					beats++
				}
			}
		}
		if waited := time.Since(began); !errors.Is(s.Err(), session.ErrSilent) || waited != time.Minute {
			t.Errorf("after %v: %v", waited, s.Err())
		}
		if beats != 4 && beats != 3 {
			t.Errorf("%d heartbeats in a minute", beats)
		}
	})
}

// A transport that takes nothing ends the session after the send timeout, with the position to resume from.
func TestBlockedTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t, session.Config{MaxSubscriptions: 1, Heartbeat: 15 * time.Second, SendTimeout: 30 * time.Second, Replayer: session.NewReplayer()})
		s.Blocked(true)
		began := time.Now()
		for s.Err() == nil {
			<-s.Ready()
		}
		var slow *session.SlowConsumerError
		if waited := time.Since(began); !errors.As(s.Err(), &slow) || waited < 30*time.Second || waited > 31*time.Second {
			t.Errorf("after %v: %v", waited, s.Err())
		}
	})
}

// A quiet subscription learns how far the namespace has come, so that it can resume from there.
func TestBookmark(t *testing.T) {
	w := newWorld(t, engine.Config{History: engine.HistoryMemory}, 1<<20)
	s := newSession(t, session.Config{MaxSubscriptions: 10, Heartbeat: 50 * time.Millisecond, SendTimeout: time.Minute, Replayer: w.replayer})
	w.subscribe(s, "a.quiet", latest, session.Options{})
	w.publish("a.busy", 100)
	for {
		m, err := w.next(s)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetDeliveries()) > 0 {
			t.Fatal("an event came that does not match")
		}
		for _, c := range m.GetControls() {
			if b := c.GetBookmark(); b.GetPosition().GetOffset() == 100 {
				return
			} else if b.GetPosition().GetOffset() > 100 {
				t.Fatalf("the bookmark is ahead: %v", b)
			}
		}
	}
}
