package opens

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnelhq/runnel/internal/engine"
)

type log struct{ n int }

func configured(namespace string) bool { return namespace != "nosuch" }

// table counts who is inside.
func table(most int) (s *Logs[*log], inside *sync.WaitGroup) {
	inside = &sync.WaitGroup{}
	return New[*log](most, configured, func() (func(), error) {
		inside.Add(1)
		return inside.Done, nil
	}), inside
}

func opened(l *log) func() (*log, error) { return func() (*log, error) { return l, nil } }

func never() (*log, error) { panic("it is open, or must not be") }

// Whoever asks while a log is being opened gets that one.
func TestOpenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, inside := table(10)
		times := 0
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() {
				l, err := s.Open("n", func() (*log, error) {
					times++
					time.Sleep(time.Second)
					return &log{times}, nil
				})
				if err != nil || l.n != 1 {
					t.Errorf("%+v, %v", l, err)
				}
			})
		}
		synctest.Wait()
		if _, ok := s.Opened("n"); ok || len(s.All(false)) != 0 {
			t.Error("what is being opened is open")
		}
		if list := s.All(true); len(list) != 1 || list[0].n != 1 {
			t.Errorf("%+v", list)
		}
		group.Wait()
		inside.Wait() // nobody stays inside
		if l, ok := s.Opened("n"); !ok || l.n != 1 {
			t.Error("it is not open")
		}
	})
}

// What could not be opened is opened by whoever asks next, and takes no place.
func TestOpeningFails(t *testing.T) {
	s, inside := table(1)
	problem := errors.New("no")
	for range 3 {
		if _, err := s.Open("n", func() (*log, error) { return nil, problem }); err != problem {
			t.Errorf("%v", err)
		}
	}
	first := &log{1}
	if l, err := s.Open("other", opened(first)); l != first || err != nil {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := s.Open("n", never); err != engine.ErrTooManyNamespaces {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"", "a.b", ">", "nosuch"} { // also where there is no room
		if _, err := s.Open(name, never); err != engine.ErrUnknownNamespace {
			t.Errorf("open %q: %v", name, err)
		}
		if name == "nosuch" {
			continue // it may have been known once: whether there is something to delete is the engine's to say
		}
		if err := s.Delete(t.Context(), name, nil); err != engine.ErrUnknownNamespace {
			t.Errorf("delete %q: %v", name, err)
		}
	}
	s.Forget("other", &log{1}) // another one
	if l, _ := s.Open("other", never); l != first {
		t.Error("it was forgotten")
	}
	s.Forget("other", first)
	if l, err := s.Open("other", opened(&log{2})); err != nil || l.n != 2 {
		t.Errorf("%v, %v", l, err)
	}
	inside.Wait()
}

// While a namespace is deleted nobody opens it and nobody else deletes it; other namespaces go on.
func TestDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, inside := table(10)
		first := &log{1}
		if _, err := s.Open("n", opened(first)); err != nil {
			t.Fatal(err)
		}
		finish := make(chan struct{})
		var order []string
		var group sync.WaitGroup
		group.Go(func() {
			err := s.Delete(t.Context(), "n", func(l *log, open bool) error {
				<-finish
				if l != first || !open {
					t.Errorf("%v, %v", l, open)
				}
				s.Forget("n", l)
				order = append(order, "deleted")
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		group.Go(func() {
			l, err := s.Open("n", func() (*log, error) {
				order = append(order, "opened")
				return &log{2}, nil
			})
			if err != nil || l.n != 2 {
				t.Errorf("%v, %v", l, err)
			}
		})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Delete(short, "n", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second deletion: %v", err)
		}
		if err := s.Delete(t.Context(), "other", func(_ *log, open bool) error {
			if open {
				t.Error("it was never opened")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		close(finish)
		group.Wait()
		inside.Wait()
		if len(order) != 2 || order[0] != "deleted" {
			t.Errorf("%v", order)
		}
	})
}

// Nothing is opened or deleted when the engine is closing.
func TestClosing(t *testing.T) {
	s := New[*log](10, configured, func() (func(), error) { return nil, engine.ErrClosed })
	if _, err := s.Open("n", never); err != engine.ErrClosed {
		t.Errorf("%v", err)
	}
	if err := s.Delete(t.Context(), "n", nil); err != engine.ErrClosed {
		t.Errorf("%v", err)
	}
}
