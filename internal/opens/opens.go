// Package opens keeps the logs of an engine by namespace.
package opens

import (
	"context"
	"sync"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

// Logs has the logs of an engine that are open. A namespace's log is opened once, whoever asks for it, and not while it is deleted. Methods may be
// called from any goroutine.
type Logs[L comparable] struct {
	most  int
	known func(namespace string) bool
	enter func() (leave func(), err error)

	mu      sync.Mutex
	places  map[string]*place[L]
	deletes map[string]chan struct{} // closed when the deletion is over
}

// place is that of a log that is open or about to be.
type place[L comparable] struct {
	done chan struct{} // closed when the rest is set
	log  L
	open bool
	err  error
}

// New returns Logs for so many namespaces of those that are known. Enter admits a call unless the engine is closing, which waits until the call leaves.
func New[L comparable](most int, known func(namespace string) bool, enter func() (leave func(), err error)) *Logs[L] {
	return &Logs[L]{most: most, known: known, enter: enter, places: map[string]*place[L]{}, deletes: map[string]chan struct{}{}}
}

// Open returns a namespace's log. If it is not open, and is known, open is called; what fails is tried again by whoever asks next.
func (s *Logs[L]) Open(namespace string, open func() (L, error)) (none L, err error) {
	if _, err := topic.ParseNamespace(namespace); err != nil {
		return none, engine.ErrUnknownNamespace
	}
	leave, err := s.enter()
	if err != nil {
		return none, err
	}
	defer leave()
	p, mine, err := s.place(namespace)
	if err != nil {
		return none, err
	}
	if mine {
		s.fill(namespace, p, open)
	}
	<-p.done
	return p.log, p.err
}

// place returns that of a namespace's log; mine says that the caller must fill it.
func (s *Logs[L]) place(namespace string) (p *place[L], mine bool, err error) {
	known := s.known(namespace)
	s.mu.Lock()
	defer s.mu.Unlock()
	for over := s.deletes[namespace]; over != nil; over = s.deletes[namespace] {
		s.mu.Unlock()
		<-over
		s.mu.Lock()
	}
	if p := s.places[namespace]; p != nil {
		return p, false, nil
	}
	switch {
	case !known:
		return nil, false, engine.ErrUnknownNamespace
	case len(s.places) >= s.most:
		return nil, false, engine.ErrTooManyNamespaces
	}
	p = &place[L]{done: make(chan struct{})}
	s.places[namespace] = p
	return p, true, nil
}

func (s *Logs[L]) fill(namespace string, p *place[L], open func() (L, error)) {
	l, err := open()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(p.done)
	p.log, p.open, p.err = l, err == nil, err
	if err != nil {
		delete(s.places, namespace)
	}
}

// Opened returns a namespace's log; false if it is not open.
func (s *Logs[L]) Opened(namespace string) (l L, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.places[namespace]; p != nil && p.open {
		return p.log, true
	}
	return l, false
}

// All returns the logs that are open, in any order. With soon it waits for those that are about to be.
func (s *Logs[L]) All(soon bool) (list []L) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for namespace, p := range s.places {
		if soon && !p.open {
			s.mu.Unlock()
			<-p.done
			s.mu.Lock()
		}
		if p.open && s.places[namespace] == p {
			list = append(list, p.log)
		}
	}
	return list
}

// Forget takes a log out. Nothing happens if it is out.
func (s *Logs[L]) Forget(namespace string, l L) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.places[namespace]; p != nil && p.open && p.log == l {
		delete(s.places, namespace)
	}
}

// Delete calls f when it is the namespace's turn: until f returns nobody else deletes it, and nobody opens its log. It is told the log if that is
// open, and takes it out with Forget.
func (s *Logs[L]) Delete(ctx context.Context, namespace string, f func(l L, open bool) error) error {
	if _, err := topic.ParseNamespace(namespace); err != nil {
		return engine.ErrUnknownNamespace
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	p, end, err := s.turn(ctx, namespace)
	if err != nil {
		return err
	}
	defer end()
	if p == nil {
		var none L
		return f(none, false)
	}
	select {
	case <-p.done:
		return f(p.log, p.open)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// turn waits for the namespace's turn to be deleted. It returns its log's place, if it has one.
func (s *Logs[L]) turn(ctx context.Context, namespace string) (p *place[L], end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for before := s.deletes[namespace]; before != nil; before = s.deletes[namespace] {
		s.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
	}
	over := make(chan struct{})
	s.deletes[namespace] = over
	return s.places[namespace], func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.deletes, namespace)
		close(over)
	}, nil
}
