package natsengine

import (
	"context"
	"errors"
	"strconv"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/topic"
)

const (
	// JetStream takes up to 1,000 messages in a batch that is stored whole or not at all.
	batchEvents = 500
	batchBytes  = 4 << 20
	// batchAttempts is how often a batch is tried before its entries go one by one.
	batchAttempts = 5
)

// chunk is how many entries from one on may be stored together: a batch has no condition on a topic that it writes itself, and
// no id twice.
func (a *appending) chunk(from int) int {
	bytes := 0
	topics := map[topic.Name]bool{}
	type id struct {
		topic topic.Name
		id    string
	}
	ids := map[id]bool{}
	for n := 0; from+n < len(a.entries); n++ {
		en := &a.entries[from+n]
		bytes += len(en.Body)
		again := en.Dedup && ids[id{en.Topic, en.ID}]
		if n > 0 && (n == batchEvents || bytes > batchBytes || again || en.Conditional && topics[en.Topic]) {
			return n
		}
		topics[en.Topic] = true
		if en.Dedup {
			ids[id{en.Topic, en.ID}] = true
		}
	}
	return len(a.entries) - from
}

// verdict is what became of entries that were tried together.
type verdict struct {
	stored    bool
	unknown   bool // an attempt was not answered, so that they may be there
	duplicate bool // the stream has one of them, and so refused all
}

// together stores entries as one atomic batch. Not stored: the stream refused the batch, for whatever reason, and the first entry at least is
// to be looked at by itself. tried says that an earlier attempt was not answered.
func (a *appending) together(ctx context.Context, at []int, sent []*sending, tried bool) (v verdict, err error) {
	v.unknown = tried
	l := a.l
	last := sent[len(sent)-1]
	for n := range batchAttempts {
		answer, what, judged := a.sendBatch(ctx, at, sent)
		switch {
		case last.isSeen():
			what = outcomeStored
		case what != outcomeStored && l.isOver(ctx, judged):
			return v, engine.ErrDeleted
		case what == outcomeUnknown:
			v.unknown = true
		case what == outcomeRefused && errors.Is(judged, engine.ErrStorageFull) && !v.unknown:
			return v, judged
		case what == outcomeRefused, isConflict(judged):
			v.duplicate = isCode(judged, codeBatchDuplicate)
			return v, nil
		}
		if what == outcomeStored {
			v.stored = true
			return v, a.settleBatch(ctx, at, sent, answer)
		}
		if pause(ctx, n) != nil {
			return v, l.givenUp(v.unknown, ctx.Err())
		}
	}
	return v, nil
}

// sendBatch makes one attempt. Only the last message asks for an answer.
func (a *appending) sendBatch(ctx context.Context, at []int, sent []*sending) (ack, outcome, error) {
	l := a.l
	if err := ctx.Err(); err != nil {
		return ack{}, outcomeAgain, err
	}
	c := l.e.write.begin(1)
	defer c.end()
	id := []string{l.e.nonce + c.token}
	for i, s := range sent {
		m := l.message(&a.entries[at[i]], s)
		m.Header[headerBatch] = id
		m.Header[headerSequence] = []string{strconv.Itoa(i + 1)}
		if i == len(sent)-1 {
			m.Header[headerCommit] = []string{"1"}
			m.Reply = c.reply()
		}
		if err := l.e.write.nc.PublishMsg(m); err != nil {
			if i < len(sent)-1 {
				return ack{}, outcomeAgain, errAway // without its last message a batch is never stored
			}
			return judge(nil, sendError(err))
		}
	}
	return c.fate(ctx, sent[len(sent)-1])
}

// settleBatch waits until a stored batch is seen.
func (a *appending) settleBatch(ctx context.Context, at []int, sent []*sending, answer ack) error {
	a.stored = true
	count := uint64(len(sent))
	for i, s := range sent {
		one := ack{Sequence: answer.Sequence - (count - 1 - uint64(i))}
		if answer.Sequence == 0 { // it was seen before it was answered, and its last event last
			one.Sequence = sent[count-1].offset - (count - 1 - uint64(i))
		}
		r, err := a.l.settle(ctx, s, one)
		if err != nil {
			return err
		}
		a.results[at[i]] = r
	}
	return nil
}
