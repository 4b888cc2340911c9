package natsengine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// getEvents and getBytes bound what one direct get returns. A server works on it while nothing else of the connection's is
	// served, and while it reads, writers of the stream wait.
	getEvents = 256
	getBytes  = 1 << 20
	// getWait is how long a server may take for the next message of an answer.
	getWait = 5 * time.Second
	// staleAttempts is how often a replica may be behind before the read fails.
	staleAttempts = 12
)

// getRequest is a direct get, which any replica answers from what it has, or one of a single message, which the leader answers.
type getRequest struct {
	Sequence uint64     `json:"seq,omitempty"`
	Start    *time.Time `json:"start_time,omitempty"`
	Next     string     `json:"next_by_subj,omitempty"`
	Last     string     `json:"last_by_subj,omitempty"`
	LastOf   []string   `json:"multi_last,omitempty"`
	UpTo     uint64     `json:"up_to_seq,omitempty"`
	Batch    int        `json:"batch,omitempty"`
	MaxBytes int        `json:"max_bytes,omitempty"`
}

// got is the answer to a direct get.
type got struct {
	messages []message
	pending  bool   // there is more
	upTo     uint64 // the newest offset that the replica had; only for LastOf
}

// message is a stored message, and the subject it was stored under.
type message struct {
	stored
}

var errTooMany = errors.New("too many results")

// get asks whichever replica is near. Nothing says how much of the stream that replica has: callers must find that out.
func (l *log) get(ctx context.Context, r getRequest) (got, error) {
	var g got
	data, err := json.Marshal(r)
	if err != nil {
		return g, err
	}
	if err := l.e.reading.Acquire(ctx, 1); err != nil {
		return g, err
	}
	defer l.e.reading.Release(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.e.ctx, cancel)()
	conn := l.e.reader()
	c := conn.begin(max(r.Batch, len(r.LastOf)) + 2)
	defer c.end()
	if err := conn.nc.PublishRequest("$JS.API.DIRECT.GET."+l.stream, c.reply(), data); err != nil {
		return g, sendError(err)
	}
	for {
		m, err := c.await(ctx, getWait)
		if err != nil {
			return g, err
		}
		switch status := first(m.Header, "Status"); status {
		case "":
		case "204":
			pending := first(m.Header, "Nats-Num-Pending")
			g.pending = pending != "" && pending != "0"
			g.upTo, _ = strconv.ParseUint(first(m.Header, "Nats-UpTo-Sequence"), 10, 64)
			return g, nil
		case "404":
			return g, nil
		case "413":
			return g, errTooMany
		default:
			return g, fmt.Errorf("direct get: %s %s", status, first(m.Header, "Description"))
		}
		s, err := readMessage(m)
		if err != nil {
			return g, err
		}
		g.messages = append(g.messages, s)
		if r.Batch == 0 && len(r.LastOf) == 0 {
			return g, nil
		}
	}
}

func readMessage(m *nats.Msg) (message, error) {
	offset, err := strconv.ParseUint(first(m.Header, "Nats-Sequence"), 10, 64)
	if err != nil {
		return message{}, fmt.Errorf("direct get: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, first(m.Header, "Nats-Time-Stamp"))
	if err != nil {
		return message{}, fmt.Errorf("direct get: %w", err)
	}
	return message{stored{offset, at.UnixMilli(), nameOf(m.Header), idOf(m.Header), m.Data}}, nil
}

// ask asks the leader for one message; ok is false if there is none. It knows everything that was acknowledged.
func (l *log) ask(ctx context.Context, r getRequest) (s stored, ok bool, err error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Sequence uint64    `json:"seq"`
			Time     time.Time `json:"time"`
			Data     []byte    `json:"data"`
		} `json:"message"`
	}
	if err := l.e.reading.Acquire(ctx, 1); err != nil {
		return s, false, err
	}
	defer l.e.reading.Release(1)
	if err := l.e.api(ctx, apiWait, "STREAM.MSG.GET."+l.stream, r, &answer); err != nil {
		return s, false, err
	}
	switch {
	case answer.Error == nil:
		m := answer.Message
		return stored{m.Sequence, m.Time.UnixMilli(), "", "", m.Data}, true, nil
	case int(answer.Error.ErrorCode) == codeNoMessage:
		return s, false, nil
	default:
		return s, false, answer.Error
	}
}
