package runnel

import (
	"context"
	"errors"
	"io"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Summary is what became of a bulk upload.
type Summary struct {
	Received    uint64
	Accepted    uint64 // duplicates included
	Duplicates  uint64
	FirstFailed int64 // index of the event that ended it; -1: none. Everything before it is stored, nothing from it on
	Last        Position
}

func summaryOf(s *runnelv1.PublishSummary) *Summary {
	return &Summary{s.GetReceived(), s.GetAccepted(), s.GetDuplicates(), s.GetFirstFailedIndex(), Position{s.GetEpoch(), s.GetLastOffset()}}
}

// Upload is a bulk publish: many events, one acknowledgement for all. It belongs to one goroutine.
type Upload struct {
	ctx    context.Context
	stream runnelv1.StreamService_PublishStreamClient
}

// Upload begins a bulk publish. The server stops taking events while too many are not yet stored, so Send may wait.
func (c *Client) Upload(ctx context.Context) (*Upload, error) {
	out, _, err := c.outgoing(ctx, "")
	if err != nil {
		return nil, err
	}
	l := c.use()
	ch, err := c.stream(l)
	if err != nil {
		c.done(l)
		return nil, err
	}
	left := func() { c.left(l, ch); c.done(l) }
	stream, err := ch.api.PublishStream(out)
	if err != nil {
		left()
		return nil, wrap(ctx, err)
	}
	context.AfterFunc(stream.Context(), left)
	return &Upload{ctx, stream}, nil
}

// Send sends one event. An *Error with a Summary says which events are stored and which one ended the upload.
func (u *Upload) Send(topic string, payload []byte, opts ...PublishOption) error {
	r := &runnelv1.PublishRequest{Topic: topic, Payload: payload}
	for _, set := range opts {
		set(r)
	}
	err := u.stream.Send(r)
	if errors.Is(err, io.EOF) {
		err = u.stream.RecvMsg(new(runnelv1.PublishSummary)) // the server has ended the upload, and says why
	}
	return wrap(u.ctx, err)
}

// Close ends the upload and returns when the last event is as durable as its namespace promises.
func (u *Upload) Close() (Summary, error) {
	s, err := u.stream.CloseAndRecv()
	if err != nil {
		return Summary{FirstFailed: -1}, wrap(u.ctx, err)
	}
	return *summaryOf(s), nil
}
