package runnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Token is a bearer token.
type Token struct {
	Value string
	// Expires is when it ends; the zero time: that is not known. A session asks for the next token in good time, or when the server
	// warns it.
	Expires time.Time
}

// TokenSource gives out tokens: a new one whenever it is called. It may take its time, within ctx, and is called by one goroutine at a
// time. An error is taken for a passing one.
type TokenSource func(ctx context.Context) (Token, error)

// WithTokenSource authenticates with tokens that are renewed before they expire. Sessions renew them in band: no stream is interrupted.
func WithTokenSource(s TokenSource) Option { return func(o *options) { o.source = s } }

// fresh is the part of a token's life after which it is renewed.
const fresh = 0.8

// tokens holds the token in use.
type tokens struct {
	source TokenSource
	lock   chan struct{} // held by whoever looks at, or fetches, the token
	now    Token
	renew  time.Time // zero: not because of its age
}

func newTokens(s TokenSource) *tokens { return &tokens{source: s, lock: make(chan struct{}, 1)} }

// get returns the token in use, or a new one if that is old, or is the one that was refused.
func (t *tokens) get(ctx context.Context, refused string) (Token, error) {
	select {
	case t.lock <- struct{}{}:
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	defer func() { <-t.lock }()
	now := time.Now()
	if t.now.Value != "" && t.now.Value != refused && (t.renew.IsZero() || now.Before(t.renew)) {
		return t.now, nil
	}
	next, err := t.source(ctx)
	if err == nil && next.Value == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		if ctx.Err() != nil {
			return Token{}, ctx.Err()
		}
		return Token{}, &Error{Code: codes.Unavailable, Message: fmt.Sprintf("no token: %v", err)}
	}
	t.now, t.renew = next, time.Time{}
	if !next.Expires.IsZero() {
		t.renew = now.Add(time.Duration(float64(next.Expires.Sub(now)) * fresh))
	}
	return next, nil
}

// outgoing adds what every call carries. refused is a token that the server did not take, if there was one; the one that is sent is
// returned.
func (c *Client) outgoing(ctx context.Context, refused string) (_ context.Context, token string, err error) {
	if c.o.clientID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "client-id", c.o.clientID)
	}
	token = c.o.token
	if c.tokens != nil {
		t, err := c.tokens.get(ctx, refused)
		if err != nil {
			return ctx, "", err
		}
		token = t.Value
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return ctx, token, nil
}

// unauthenticated says that another token may do better.
func (c *Client) unauthenticated(err error) bool {
	var e *Error
	return c.tokens != nil && errors.As(err, &e) && e.Code == codes.Unauthenticated
}

// renewing is how a session's stream keeps its token fresh.
type renewing struct {
	s    *Session
	used string        // the token in use
	soon chan struct{} // receives when the server warns
}

// run sends new tokens until the stream ends. Where there is none to be had, the server ends the stream, and says so.
func (r *renewing) run(ctx context.Context) {
	c := r.s.c
	for {
		var due <-chan time.Time
		var timer *time.Timer
		if wait, known := c.tokens.wait(ctx, r.used); known {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		warned := false
		select {
		case <-due:
		case <-r.soon:
			warned = true
		case <-ctx.Done():
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		old := ""
		if warned {
			old = r.used
		}
		t, err := c.tokens.get(ctx, old)
		if err != nil {
			var b retry
			if b.wait(ctx, time.Second) != nil {
				return
			}
			signal(r.soon)
			continue
		}
		if t.Value == r.used {
			continue
		}
		r.used = t.Value
		r.s.mu.Lock()
		r.s.lastReq++
		r.s.queueLocked(&runnelv1.StreamRequest{RequestId: r.s.lastReq, Request: &runnelv1.StreamRequest_RefreshToken{
			RefreshToken: &runnelv1.RefreshToken{Token: t.Value},
		}})
		r.s.mu.Unlock()
	}
}

// wait is how long the token in use still serves; false if that is not known. If it is not the one that a stream uses, it does not wait.
func (t *tokens) wait(ctx context.Context, used string) (time.Duration, bool) {
	select {
	case t.lock <- struct{}{}:
	case <-ctx.Done():
		return 0, false
	}
	defer func() { <-t.lock }()
	if t.now.Value != used {
		return 0, true
	}
	return time.Until(t.renew), !t.renew.IsZero()
}
