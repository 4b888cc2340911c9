package system

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// topicLog is what a simple server without gRPC keeps of a topic: the newest events, numbered from 1, encoded once.
type topicLog struct {
	mu     sync.Mutex
	events [][]byte // each with its length before it
	first  uint64   // number of events[0]
	more   chan struct{}
}

// keep is how many events a topicLog holds. Whoever falls behind that far has lost some, which the measurement then shows.
const keep = 1 << 16

func (l *topicLog) add(b []byte) {
	l.mu.Lock()
	l.events = append(l.events, b)
	if len(l.events) > 2*keep {
		n := len(l.events) - keep
		l.events = append([][]byte(nil), l.events[n:]...)
		l.first += uint64(n)
	}
	close(l.more)
	l.more = make(chan struct{})
	l.mu.Unlock()
}

// after returns events behind a number, at most most, and what is closed when there are more. The slice must not be changed.
func (l *topicLog) after(n uint64, most int) (events [][]byte, last uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := min(max(n+1, l.first)-l.first, uint64(len(l.events)))
	events = l.events[from:min(int(from)+most, len(l.events))]
	return events, l.first + from + uint64(len(events)) - 1, l.more
}

// head is the number of the newest event.
func (l *topicLog) head() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first + uint64(len(l.events)) - 1
}

// topicLogs are those of a server.
type topicLogs struct {
	mu   sync.Mutex
	logs map[string]*topicLog
}

func (t *topicLogs) log(topic string) *topicLog {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.logs[topic]
	if l == nil {
		l = &topicLog{first: 1, more: make(chan struct{})}
		t.logs[topic] = l
	}
	return l
}

// ingest reads events from a publisher's connection: topic and payload, each with its length before it.
func (t *topicLogs) ingest(c net.Conn) error {
	r := bufio.NewReaderSize(c, 64<<10)
	for {
		topic, err := readFramed(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		payload, err := readFramed(r)
		if err != nil {
			return err
		}
		t.log(string(topic[4:])).add(payload)
	}
}

func readFramed(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, 4+binary.LittleEndian.Uint32(head[:]))
	copy(b, head[:])
	_, err := io.ReadFull(r, b[4:])
	return b, err
}
