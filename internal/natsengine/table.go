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

// Table is a small set of values by key that the nodes of a prefix share: a stream that keeps the newest value of each key. What is put reaches
// all nodes, and outlives them. Its methods are safe for concurrent use.
type Table struct {
	e       *Engine
	stream  string
	subject string // but for the key
}

// tableWait bounds how long the values that are there may take to come; it is looked at every tableLook whether there are any.
const (
	tableWait = 20 * time.Second
	tableLook = 250 * time.Millisecond
)

// Table opens the table of that name, making it if it is new, and calls f with every value: those that are there before it returns, then each
// that is put by any node, in the order in which they are put, one after the other, until the engine is closed. While NATS is away none come;
// they do when it is back. No topic can be a table: names of topics hold no $.
func (e *Engine) Table(name string, f func(value []byte)) (*Table, error) {
	t := &Table{e: e, stream: e.o.Prefix + "_$" + name, subject: e.o.Prefix + ".$" + name + "."}
	ctx, cancel := context.WithTimeout(e.ctx, tableWait)
	defer cancel()
	info, err := t.make(ctx)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(e.feed.nc)
	if err != nil {
		return nil, fmt.Errorf("cannot read stream %s: %w", t.stream, err)
	}
	consumer, err := js.OrderedConsumer(ctx, t.stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy})
	if err != nil {
		return nil, fmt.Errorf("cannot read stream %s: %s", t.stream, oneLine(err))
	}
	there := make(chan struct{})
	all := info.State.Messages == 0
	if all {
		close(there)
	}
	reading, err := consumer.Consume(func(m jetstream.Msg) { // in one goroutine
		f(m.Data())
		if meta, err := m.Metadata(); err == nil && meta.NumPending == 0 && !all {
			all = true
			close(there)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read stream %s: %s", t.stream, oneLine(err))
	}
	e.group.Go(func() {
		<-e.ctx.Done()
		reading.Stop()
		<-reading.Closed()
	})
	// What was to come last may have been forgotten before it came: then twice nothing is on its way.
	look := time.NewTicker(tableLook)
	defer look.Stop()
	for none := 0; none < 2; {
		select {
		case <-there:
			return t, nil
		case <-look.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("stream %s does not say what is in it: its servers may have no majority", t.stream)
		}
		if i, err := consumer.Info(ctx); err == nil && i.NumPending == 0 {
			none++
		} else {
			none = 0
		}
	}
	return t, nil
}

// make makes sure that the stream is there.
func (t *Table) make(ctx context.Context) (*streamInfo, error) {
	i := new(streamInfo)
	err := t.e.api(ctx, setupWait, "STREAM.CREATE."+t.stream, jetstream.StreamConfig{
		Name: t.stream, Description: "shared by Runnel nodes", Subjects: []string{t.subject + ">"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
		Storage: jetstream.FileStorage, Replicas: t.e.o.Replicas, MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1, AllowMsgTTL: true,
	}, i)
	if err == nil && i.Error != nil {
		err = i.Error
	}
	if err != nil {
		return nil, apiError("cannot create stream "+t.stream, err)
	}
	return i, nil
}

// Put puts a value under a key, a token of letters, digits, - and _, and returns when it is stored; it is forgotten after a while that is not
// 0. After an error it may be stored or not.
func (t *Table) Put(ctx context.Context, key string, value []byte, forget time.Duration) error {
	l := t.e.write
	c := l.begin(1)
	defer c.end()
	m := nats.NewMsg(t.subject + key)
	m.Reply, m.Data = c.reply(), value
	if forget > 0 {
		m.Header.Set("Nats-TTL", strconv.FormatInt(int64(max(forget.Round(time.Second), time.Second)/time.Second), 10))
	}
	if err := l.nc.PublishMsg(m); err != nil {
		return sendError(err)
	}
	answer, err := c.await(ctx, setupWait)
	if err != nil {
		return err
	}
	var ack struct {
		Stream string              `json:"stream"`
		Error  *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(answer.Data, &ack); {
	case err != nil:
		return fmt.Errorf("NATS gives a strange answer: %w", err)
	case ack.Error != nil:
		return errors.New(oneLine(ack.Error))
	}
	return nil
}
