package system

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/runnelhq/runnel/bench/wire"
)

// poll1 answers each request with one event, as long polling is usually written.
func poll1() *System { return poll("poll1", "HTTP long polling, one event per response") }

// pollAll answers each request with all events that wait.
func pollAll() *System { return poll("pollall", "HTTP long polling, all waiting events per response") }

func poll(name, help string) *System {
	return &System{
		Name: name, Help: help,
		start: own(name),
		Hello: func(topic string) []byte { return wire.PollRequest(nil, topic, 0) },
		Parser: func(topic string) func(wire.Events) wire.Parser {
			return func(e wire.Events) wire.Parser { e.Ready(); return wire.NewPoll(e, topic) }
		},
		// Events come in on TCP, beside HTTP: it is not the publisher's way in that is compared.
		Publisher: func(ctx context.Context, address string) (Publisher, error) {
			return newFramedPublisher(ctx, address)
		},
	}
}

func init() {
	servers["poll1"] = pollServer(1)
	servers["pollall"] = pollServer(batch)
}

// pollServer serves HTTP, and publishers on the same port: their first byte is P, which no GET begins with.
func pollServer(most int) func(context.Context) (string, func() error, error) {
	return func(ctx context.Context) (string, func() error, error) {
		t := &topicLogs{logs: map[string]*topicLog{}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, err
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.answer(w, r, most) })}
		s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ctx }
		split := &splitListener{Listener: l, logs: t}
		context.AfterFunc(ctx, func() { s.Close() })
		var group sync.WaitGroup
		group.Go(func() { err = s.Serve(split) })
		return l.Addr().String(), func() error {
			group.Wait()
			split.group.Wait()
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		}, nil
	}
}

func (t *topicLogs) answer(w http.ResponseWriter, r *http.Request, most int) {
	q := r.URL.Query()
	after, err := strconv.ParseUint(q.Get("after"), 10, 64)
	if err != nil {
		http.Error(w, "after is not a number", http.StatusBadRequest)
		return
	}
	l := t.log(q.Get("topic"))
	for {
		events, last, more := l.after(after, most)
		if len(events) == 0 {
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
			continue
		}
		body := binary.LittleEndian.AppendUint64(nil, last)
		for _, e := range events {
			body = append(body, e...)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
		return
	}
}

// splitListener keeps publishers' connections from HTTP.
type splitListener struct {
	net.Listener
	logs  *topicLogs
	group sync.WaitGroup
}

// Accept implements net.Listener. The first byte is there at once: clients of this harness write before they wait.
func (s *splitListener) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var first [1]byte
		if _, err := c.Read(first[:]); err != nil {
			c.Close()
			continue
		}
		if first[0] != 'P' {
			return &begun{Conn: c, first: first[:]}, nil
		}
		s.group.Go(func() {
			defer c.Close()
			s.logs.ingest(c)
		})
	}
}

// begun is a connection whose first byte was read.
type begun struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 && len(p) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}
