package natsengine

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

const (
	// appendWindow is how many events this node has on their way to NATS; more wait.
	appendWindow = 8192
	// ackWait is how long an acknowledgement may take before the event is sent again, under the same id.
	ackWait = 2 * time.Second
	// appendPatience is how long an append tries to learn its fate.
	appendPatience = 20 * time.Second
	// awayPatience is the same while there is no connection, if nothing was sent that may have been stored.
	awayPatience = 500 * time.Millisecond
	// mostWholes is how often entries are tried together.
	mostWholes = 4
	// mostLooks is how often what lies behind a duplicate is looked through in vain.
	mostLooks = 2
	// feedWait is how long an acknowledged event may take to come out of the consumer before its append begins to watch head.
	// Many that watch wake each other up.
	feedWait = 20 * time.Millisecond
)

// sending is an event of this node on its way. The consumer, which brings every stored event, is who knows its fate: its
// offset and timestamp, also where no acknowledgement came.
type sending struct {
	name string
	came chan struct{} // closed when the consumer has brought it

	// Set before came is closed.
	offset uint64
	time   int64
}

// seen is called under the log's lock.
func (s *sending) seen(offset uint64, time int64) {
	select {
	case <-s.came: // it came again, from before
	default:
		s.offset, s.time = offset, time
		close(s.came)
	}
}

func (s *sending) isSeen() bool {
	select {
	case <-s.came:
		return true
	default:
		return false
	}
}

func (s *sending) result() engine.Result { return engine.Result{Offset: s.offset, Timestamp: s.time} }

// send names an event that is about to be sent. The caller must end it.
func (l *log) send() *sending {
	s := &sending{name: l.e.nonce + strconv.FormatUint(l.e.turn.Add(1), 36), came: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[s.name] = s
	return s
}

func (l *log) sendingEnds(list ...*sending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range list {
		delete(l.sent, s.name)
	}
}

// hashID stands for a topic and an event id. Cut from SHA-256, so that nobody can make two that meet.
func hashID(n topic.Name, id string) string {
	buf := make([]byte, 0, topic.MaxBytes+1+128)
	buf = append(append(append(buf, n.String()...), 0), id...)
	sum := sha256.Sum256(buf)
	return base64.RawURLEncoding.EncodeToString(sum[:idBytes])
}

// message is how an event is sent.
func (l *log) message(en *engine.Entry, s *sending) *nats.Msg {
	h := nats.Header{headerStream: {l.stream}}
	if en.Dedup {
		h[headerID] = []string{hashID(en.Topic, en.ID)}
		h[headerName] = []string{s.name}
	} else {
		h[headerID] = []string{s.name}
	}
	if en.Conditional {
		h[headerExpected] = []string{strconv.FormatUint(en.Expected, 10)}
	}
	return &nats.Msg{Subject: l.e.o.subject(en.Topic.String()), Header: h, Data: en.Body}
}

// Append implements engine.Log.
func (l *log) Append(ctx context.Context, entries []engine.Entry, mode engine.AppendMode) ([]engine.Result, error) {
	if err := l.e.enter(); err != nil {
		return nil, err
	}
	defer l.e.appends.Done()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, nil
	}
	l.gate.RLock()
	defer l.gate.RUnlock()
	if err := l.readable(); err != nil {
		return nil, err
	}
	if !l.e.write.up() {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, errAway)
	}
	if !l.kept {
		return l.appendPassing(ctx, entries, mode)
	}
	a := &appending{l: l, mode: mode, entries: entries, results: make([]engine.Result, len(entries))}
	err := a.run(ctx)
	if err != nil {
		return nil, err
	}
	return a.results, nil
}

// appending is one Append under way.
type appending struct {
	l       *log
	mode    engine.AppendMode
	entries []engine.Entry
	results []engine.Result
	stored  bool // something of it is
	stopped bool // an entry failed, and the mode is AppendOrdered
}

func (a *appending) run(ctx context.Context) error {
	for done := 0; done < len(a.entries); {
		n := a.chunk(done)
		weight := int64(min(n, appendWindow))
		if err := a.l.e.window.Acquire(ctx, weight); err != nil {
			return a.fail(ctx, err)
		}
		err := a.some(ctx, done, n)
		a.l.e.window.Release(weight)
		if err != nil {
			return a.fail(ctx, err)
		}
		done += n
	}
	return nil
}

// fail is the error of the whole Append: where a part is stored, the fate of all is as good as unknown.
func (a *appending) fail(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if a.stored && !errors.Is(err, engine.ErrStorageFailed) && !errors.Is(err, engine.ErrDeleted) {
		return fmt.Errorf("%w: %s", engine.ErrStorageFailed, oneLine(err))
	}
	return err
}

// some stores n entries: together if that can be, else one after the other, each sent when the fate of the one before is known.
// That is slow and cannot go wrong.
func (a *appending) some(ctx context.Context, from, n int) error {
	if a.stopped {
		a.skip(from, n)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx) // ends with the engine and the log too
	defer cancel()
	defer context.AfterFunc(a.l.e.killed, cancel)()
	defer context.AfterFunc(a.l.ctx, cancel)()
	at := make([]int, n)
	for i := range at {
		at[i] = from + i
	}
	at, _ = a.recalled(at, nil)
	sent := make([]*sending, len(at))
	for i := range sent {
		sent[i] = a.l.send()
	}
	defer func(all []*sending) { a.l.sendingEnds(all...) }(sent)
	tried, whole, wholes, looks := false, true, 0, 0
	for len(at) > 0 {
		if whole && len(at) > 1 && wholes < mostWholes {
			v, err := a.together(ctx, at, sent, tried)
			if err != nil || v.stored {
				return err
			}
			wholes++
			tried = v.unknown
			if v.duplicate {
				before := len(at)
				if at, sent = a.caughtUp(ctx, at, sent); len(at) < before {
					wholes = 0
					continue
				}
			}
		}
		i := at[0]
		r, err := a.l.storeOne(ctx, &a.entries[i], sent[0], tried)
		if err != nil {
			return err
		}
		a.results[i] = r
		a.stored = a.stored || r.Err == nil
		if r.Err != nil && a.mode == engine.AppendOrdered {
			a.stopped = true
			a.skip(i+1, from+n-i-1)
			return nil
		}
		at, sent = at[1:], sent[1:]
		// What is sent again begins with what is there already; behind that all may be new.
		if whole = r.Err == nil && !r.Duplicate; r.Duplicate && looks < mostLooks {
			before := len(at)
			looks++
			if at, sent = a.nearby(ctx, r.Offset, at, sent); len(at) < before {
				whole, looks = true, 0
			}
		}
	}
	return nil
}

// skip fails n entries behind one that has failed.
func (a *appending) skip(from, n int) {
	for i := range n {
		a.results[from+i] = engine.Result{Err: engine.ErrSkipped}
	}
}

// outcome is what is known after an attempt.
type outcome int

const (
	outcomeStored  outcome = iota // or was stored before, under the same id
	outcomeRefused                // nothing was stored by this attempt, and err says why
	outcomeAgain                  // the same, and it is worth another attempt
	outcomeUnknown
)

// ack is JetStream's answer to a publish.
type ack struct {
	Sequence  uint64              `json:"seq"`
	Duplicate bool                `json:"duplicate"`
	Error     *jetstream.APIError `json:"error"`
}

// judge reads the answer to an attempt.
func judge(m *nats.Msg, err error) (ack, outcome, error) {
	var a ack
	switch {
	case errors.Is(err, errNoResponders), errors.Is(err, errAway):
		return a, outcomeAgain, err
	case errors.Is(err, nats.ErrMaxPayload):
		return a, outcomeRefused, err
	case err != nil:
		return a, outcomeUnknown, err
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return a, outcomeUnknown, err
	}
	switch {
	case a.Error == nil && a.Sequence > 0:
		return a, outcomeStored, nil
	case a.Error == nil:
		return a, outcomeUnknown, errors.New("an acknowledgement that says nothing")
	}
	switch int(a.Error.ErrorCode) {
	case codeConflictInFlight, codeDuplicateInFlight, codeTooMany, codeOtherStream:
		return a, outcomeAgain, a.Error
	case codeStoreFailed:
		return a, outcomeUnknown, a.Error
	case codeNoResources, codeNoStorage:
		return a, outcomeRefused, fmt.Errorf("%w: %w", engine.ErrStorageFull, a.Error)
	}
	if a.Error.Code == 503 {
		return a, outcomeAgain, a.Error
	}
	return a, outcomeRefused, a.Error
}

// storeOne stores one entry and waits until its fate is known: it is sent again, under the same id, as often as that takes.
// unknown says that it was sent before.
func (l *log) storeOne(ctx context.Context, en *engine.Entry, s *sending, unknown bool) (engine.Result, error) {
	m := l.message(en, s)
	began := time.Now()
	for n := 0; ; n++ {
		a, what, err := l.attempt(ctx, m, s)
		switch {
		case s.isSeen():
			return s.result(), nil
		case what == outcomeStored:
			return l.settle(ctx, s, a)
		case l.isOver(ctx, err):
			return engine.Result{}, engine.ErrDeleted
		case what == outcomeRefused && isConflict(err):
			return l.conflict(ctx, en, s, err)
		case what == outcomeRefused && !unknown:
			return engine.Result{}, err
		case what == outcomeUnknown:
			unknown = true
		}
		patience := appendPatience
		if !unknown && errors.Is(err, errAway) {
			patience = awayPatience
		}
		if ctx.Err() == nil && time.Since(began) < patience {
			_ = pause(ctx, n) // what ends it ends the next attempt too
			continue
		}
		if !unknown && isCode(err, codeConflictInFlight) {
			return l.conflict(ctx, en, s, err)
		}
		return engine.Result{}, l.givenUp(unknown, err)
	}
}

// isOver reports whether an attempt failed because the log's stream is gone. Then no attempt left anything: what was stored went with the
// stream, and what is on its way is for no other.
func (l *log) isOver(ctx context.Context, err error) bool {
	if l.readable() != nil {
		return true
	}
	return isCode(err, codeOtherStream) && l.endIfGone(ctx)
}

// givenUp is the error of an append that did not learn its fate, or found nobody to store it.
func (l *log) givenUp(unknown bool, err error) error {
	switch {
	case l.readable() != nil:
		return engine.ErrDeleted
	case unknown:
		return fmt.Errorf("%w: %s", engine.ErrStorageFailed, oneLine(err))
	default:
		return fmt.Errorf("%w: %s", engine.ErrUnavailable, oneLine(err))
	}
}

// attempt sends a message once and waits for the answer or for the event itself.
func (l *log) attempt(ctx context.Context, m *nats.Msg, s *sending) (ack, outcome, error) {
	if err := ctx.Err(); err != nil {
		return ack{}, outcomeAgain, err
	}
	c := l.e.write.begin(1)
	defer c.end()
	m.Reply = c.reply()
	if err := l.e.write.nc.PublishMsg(m); err != nil {
		return judge(nil, sendError(err))
	}
	return c.fate(ctx, s)
}

// fate waits for a publish's answer, or for the event itself.
func (c *call) fate(ctx context.Context, s *sending) (ack, outcome, error) {
	timer := time.NewTimer(ackWait)
	defer timer.Stop()
	select {
	case <-s.came:
		return ack{}, outcomeStored, nil
	case m := <-c.answers:
		if len(m.Data) == 0 && first(m.Header, "Status") == "503" {
			c.l.heard(false)
			return judge(nil, errNoResponders)
		}
		a, what, err := judge(m, nil)
		c.l.heard(what == outcomeStored || what == outcomeRefused)
		return a, what, err
	case <-c.lost:
		return judge(nil, errLost)
	case <-timer.C:
		c.l.heard(false)
		return judge(nil, errSilent)
	case <-ctx.Done():
		return judge(nil, ctx.Err())
	}
}

// settle waits until an acknowledged event is seen. Where the acknowledgement is that of an event that was there before, it may
// be another's: then this one is its duplicate.
func (l *log) settle(ctx context.Context, s *sending, a ack) (engine.Result, error) {
	unknown := func(err error) (engine.Result, error) {
		return engine.Result{}, l.givenUp(true, fmt.Errorf("acknowledged at offset %d, and not seen: %w", a.Sequence, err))
	}
	if !a.Duplicate && l.State().Head < a.Sequence {
		timer := time.NewTimer(feedWait)
		defer timer.Stop()
		select {
		case <-s.came:
			return s.result(), nil
		case <-timer.C: // perhaps retention was faster than the consumer, and only head tells
		case <-ctx.Done():
			return unknown(ctx.Err())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, appendPatience)
	defer cancel()
	if err := l.await(ctx, a.Sequence); err != nil {
		return unknown(err)
	}
	if s.isSeen() {
		return s.result(), nil
	}
	t, err := l.timeOf(ctx, a.Sequence)
	if err != nil {
		return unknown(err)
	}
	if t == 0 && !a.Duplicate { // retention was faster than the consumer: nobody can see what its timestamp was
		l.mu.Lock()
		t = l.time
		l.mu.Unlock()
	}
	return engine.Result{Offset: a.Sequence, Timestamp: t, Duplicate: a.Duplicate}, nil
}

func isConflict(err error) bool {
	return isCode(err, codeConflict) || isCode(err, codeConflictInFlight)
}

// conflict says which event is the topic's newest. That may be this one: an attempt that was not answered, or, where the server
// looks at expectations before ids, as it does without replicas, an earlier publish of the same id.
func (l *log) conflict(ctx context.Context, en *engine.Entry, s *sending, err error) (engine.Result, error) {
	current, ok := lastSequence(err)
	if !ok {
		var askErr error
		if current, _, askErr = l.lastAt(ctx, en.Topic, 0); askErr != nil {
			return engine.Result{}, l.givenUp(true, askErr)
		}
	}
	wait, cancel := context.WithTimeout(ctx, appendPatience)
	defer cancel()
	if err := l.await(wait, current); err != nil { // nothing above head is ever told
		return engine.Result{}, l.givenUp(true, err)
	}
	if s.isSeen() {
		return s.result(), nil
	}
	if en.Dedup && l.e.o.Replicas == 1 {
		r, found, err := l.findID(ctx, en)
		if err != nil {
			return engine.Result{}, l.givenUp(true, err)
		}
		if found {
			return r, nil
		}
	}
	return engine.Result{Err: &engine.ConflictError{Current: current}}, nil
}

// lastSequence is what a conflict's text says is the newest.
func lastSequence(err error) (uint64, bool) {
	var api *jetstream.APIError
	if !errors.As(err, &api) || int(api.ErrorCode) != codeConflict {
		return 0, false
	}
	_, number, ok := strings.Cut(api.Description, "wrong last sequence: ")
	n, parseErr := strconv.ParseUint(number, 10, 64)
	return n, ok && parseErr == nil
}
