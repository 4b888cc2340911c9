package enginetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
)

// siege is a namespace that is deleted again and again while it is written, read and followed. Everybody looks its log up anew after
// ErrDeleted.
type siege struct {
	g     *rig
	acked chan struct{} // receives when an append was acknowledged; nobody publishes much more than is counted
	done  chan struct{} // closed when enough was published

	deleted atomic.Int64 // deletions that have returned

	mu   sync.Mutex
	dead map[string]int64  // by epoch: the deletion that ended it
	acks []siegeAck        // of all epochs
	home map[string]string // by event id: the epoch it was seen in
}

type siegeAck struct {
	epoch  string
	offset uint64
	id     string
	began  int64 // deletions that had returned when the append began
}

func deleteUnderLoad(g *rig) {
	const writers, readers, deletions, between = 4, 2, 8, 30
	g.open(engine.Config{})
	s := &siege{g: g, acked: make(chan struct{}, writers), done: make(chan struct{}), dead: map[string]int64{}, home: map[string]string{}}
	ctx, stop := context.WithCancel(g.ctx)
	var working, looking sync.WaitGroup
	for w := range writers {
		working.Go(func() { s.write(w) })
	}
	for range readers {
		looking.Go(func() { s.follow(ctx) })
		if g.history != engine.HistoryNone {
			looking.Go(func() { s.read(ctx) })
			looking.Go(func() { s.lookUp(ctx) })
		}
	}
	await := func() {
		for range between {
			select {
			case <-s.acked:
			case <-ctx.Done():
				g.Fatalf("publishers are stuck")
			}
		}
	}
	for n := int64(1); n <= deletions; n++ {
		await()
		epoch := g.log(namespace).State().Epoch
		s.mu.Lock()
		s.dead[epoch] = n
		s.mu.Unlock()
		g.delete(namespace)
		s.deleted.Store(n)
	}
	await()
	close(s.done)
	working.Wait()
	stop()
	looking.Wait()
	s.judge()
}

// write appends to a log as long as there is one; what was refused because it was deleted goes to the next one.
func (s *siege) write(w int) {
	var l engine.Log
	for i := 0; s.g.ctx.Err() == nil; {
		began := s.deleted.Load()
		if l == nil {
			var err error
			if l, err = s.g.eng.Log(namespace); err != nil {
				s.g.Errorf("log: %v", err)
				return
			}
		}
		id := fmt.Sprintf("%d-%d", w, i)
		res, err := l.Append(s.g.ctx, []engine.Entry{s.g.dedup("n.a", id, "x")}, engine.AppendEach)
		switch {
		case errors.Is(err, engine.ErrDeleted):
			l = nil
			continue
		case err != nil || res[0].Err != nil || res[0].Duplicate:
			s.g.Errorf("append %s: %+v, %v", id, res, err)
			return
		}
		s.mu.Lock()
		s.acks = append(s.acks, siegeAck{l.State().Epoch, res[0].Offset, id, began})
		s.mu.Unlock()
		i++
		select {
		case s.acked <- struct{}{}:
		case <-s.done:
			return
		}
	}
}

// follow tails log after log, each from its beginning.
func (s *siege) follow(ctx context.Context) {
	for ctx.Err() == nil {
		l, err := s.g.eng.Log(namespace)
		if err != nil {
			s.g.Errorf("log: %v", err)
			return
		}
		t, err := l.Tail(0)
		for last := uint64(0); err == nil; {
			var p engine.Page
			if p, err = t.Next(ctx); err != nil {
				break
			}
			if s.g.history == engine.HistoryNone {
				continue // it begins now, wherever that is
			}
			s.page(l, p, last)
			last = p.Scanned
		}
		if t != nil {
			t.Close()
		}
		if !errors.Is(err, engine.ErrDeleted) && ctx.Err() == nil {
			s.g.Errorf("tail: %v", err)
			return
		}
	}
}

func (s *siege) read(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		l, err := s.g.eng.Log(namespace)
		if err != nil {
			s.g.Errorf("log: %v", err)
			return
		}
		r := engine.ReadRequest{}
		if i%2 == 0 {
			r.Pattern = s.g.pattern("n.a")
		}
		p, err := l.Read(ctx, r)
		switch {
		case errors.Is(err, engine.ErrDeleted), ctx.Err() != nil:
		case err != nil:
			s.g.Errorf("read: %v", err)
			return
		default:
			s.page(l, p, 0)
		}
	}
}

// page checks a page that begins behind an offset: it has no hole, and no event that was seen in another epoch.
func (s *siege) page(l engine.Log, p engine.Page, after uint64) {
	epoch := l.State().Epoch
	if len(p.Damaged) > 0 || p.Scanned != after+uint64(len(p.Events)) {
		s.g.Errorf("a page behind %d scanned up to %d with %d events, damaged %v", after, p.Scanned, len(p.Events), p.Damaged)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, ev := range p.Events {
		m := new(runnelv1.Event)
		if err := proto.Unmarshal(ev.Wire, m); err != nil || ev.Offset != after+uint64(i)+1 {
			s.g.Errorf("offset %d at place %d behind %d: %v", ev.Offset, i, after, err)
			return
		}
		if home, seen := s.home[m.GetEventId()]; seen && home != epoch {
			s.g.Errorf("event %s is in epoch %s and in %s", m.GetEventId(), home, epoch)
		}
		s.home[m.GetEventId()] = epoch
	}
}

// lookUp asks for what does not change while a log lives.
func (s *siege) lookUp(ctx context.Context) {
	p := s.g.pattern("n.>")
	for ctx.Err() == nil {
		l, err := s.g.eng.Log(namespace)
		if err != nil {
			s.g.Errorf("log: %v", err)
			return
		}
		head := l.State().Head
		if head == 0 {
			continue
		}
		_, begins := l.BeforeTime(ctx, 0)
		t, ok, topic := l.Topic(ctx, s.g.name("n.a"))
		list, _, topics := l.Topics(ctx, p, "", 10)
		last, offsets := l.LastOffsets(ctx, p, head, 10)
		first, page := l.ReadAt(ctx, []uint64{1}, 100)
		for _, err := range []error{begins, topic, topics, offsets, page} {
			if err != nil && !errors.Is(err, engine.ErrDeleted) && ctx.Err() == nil {
				s.g.Errorf("lookup: %v", err)
			}
		}
		if topic == nil && (!ok || t.Oldest != 1) || topics == nil && len(list) != 1 || offsets == nil && len(last) != 1 ||
			page == nil && (len(first.Events) != 1 || len(first.Damaged) > 0) {
			s.g.Errorf("a log with head %d: topic %+v %v, topics %+v, last offsets %v, first event %+v", head, t, ok, list, last, first)
		}
	}
}

// judge holds all acknowledgements against each other, and against what is left.
func (s *siege) judge() {
	epochs := map[string]map[uint64]string{}
	ids := map[string]bool{}
	for _, a := range s.acks {
		if n := s.dead[a.epoch]; n > 0 && a.began >= n {
			s.g.Errorf("event %s began after deletion %d had returned, and is in the epoch that it ended", a.id, n)
		}
		if ids[a.id] {
			s.g.Errorf("event %s was acknowledged twice", a.id)
		}
		ids[a.id] = true
		if epochs[a.epoch] == nil {
			epochs[a.epoch] = map[uint64]string{}
		}
		epochs[a.epoch][a.offset] = a.id
	}
	if len(epochs) < 2 {
		s.g.Errorf("all events are in %d epochs", len(epochs))
	}
	if s.g.history == engine.HistoryNone {
		return
	}
	counted := 0
	for epoch, events := range epochs {
		for offset := range uint64(len(events)) {
			if events[offset+1] == "" {
				s.g.Errorf("epoch %s has %d events, and none at offset %d", epoch, len(events), offset+1)
			}
		}
		counted += len(events)
	}
	if counted != len(s.acks) {
		s.g.Errorf("%d events were acknowledged at %d places", len(s.acks), counted)
	}
	l := s.g.log(namespace)
	left := epochs[l.State().Epoch]
	got := s.g.read(l, engine.ReadRequest{})
	for _, ev := range got {
		m := new(runnelv1.Event)
		if err := proto.Unmarshal(ev.Wire, m); err != nil || left[ev.Offset] != m.GetEventId() {
			s.g.Errorf("offset %d holds %s, and %s was acknowledged: %v", ev.Offset, m.GetEventId(), left[ev.Offset], err)
		}
	}
	if len(got) != len(left) {
		s.g.Errorf("%d events are left, %d were acknowledged", len(got), len(left))
	}
}
