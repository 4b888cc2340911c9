package runnel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
)

const (
	// breakAfter calls in a row that a server took and did not answer, or not in time, are taken for a sign that it should be left alone
	// for breakFor; then one call tries it.
	breakAfter = 5
	breakFor   = 2 * time.Second

	// A call earns retryShare of a retry; at most retryMost are saved up. What the server asks for (RetryInfo), or what could not be sent
	// at all, is free: the first is paced by the server, the second by the connection. (After gRFC A6, which counts failures instead.)
	retryShare = 0.2
	retryMost  = 10
)

// call repeats a unary call while it fails in a way that passes, until ctx ends or the connect timeout is over, as far as the retry budget
// allows.
func call[T any](ctx context.Context, c *Client, f func(context.Context, *link) (T, error)) (T, error) {
	var b retry
	refused := ""
	c.retries.earn()
	c.counts.calls.Add(1)
	for deadline := time.Now().Add(c.o.connectTimeout); ; {
		res, token, sent, err := attempt(ctx, c, refused, f)
		if c.unauthenticated(err) && refused == "" {
			refused = token // once: another may be taken
			continue
		}
		if err == nil || !passing(err) || time.Now().After(deadline) || c.ctx.Err() != nil {
			return res, err
		}
		if sent && retryAfter(err) == 0 && !c.retries.spend() {
			c.counts.denied.Add(1)
			return res, err
		}
		if err := b.wait(ctx, retryAfter(err)); err != nil {
			return res, err
		}
		c.counts.retries.Add(1)
	}
}

// attempt makes one call. sent is false if the server has certainly not had it.
func attempt[T any](ctx context.Context, c *Client, refused string, f func(context.Context, *link) (T, error)) (res T, token string, sent bool, err error) {
	out, token, err := c.outgoing(ctx, refused)
	if err != nil {
		return res, token, false, err
	}
	one, cancel := context.WithTimeout(out, c.o.callTimeout)
	defer cancel()
	l := c.use()
	defer c.done(l)
	_, err = l.breaker.Execute(func() (_ struct{}, err error) {
		sent = true
		res, err = f(one, l)
		err = wrap(ctx, err)
		if err != nil && ctx.Err() == nil && one.Err() != nil {
			err = &Error{Code: codes.DeadlineExceeded, Message: fmt.Sprintf("the server has not answered within %v", c.o.callTimeout)}
		}
		if unanswered(err) && l.conn.GetState() != connectivity.Ready {
			sent = false // as good as certainly: what was on its way when the connection broke is rare
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		c.counts.rejected.Add(1)
		err = &Error{Code: codes.Unavailable, Message: fmt.Sprintf("the server at %s did not answer the last calls, and is left alone for %v", l.target, breakFor)}
	}
	c.failed(l, err)
	return res, token, sent, err
}

// unanswered says that it was not the server that spoke: it may be gone, stuck, or overrun.
func unanswered(err error) bool {
	var e *Error
	return errors.As(err, &e) && !e.FromServer && (e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded)
}

// newBreaker is the circuit breaker of a link. A connection that is not there needs none: grpc paces its return.
func newBreaker(ch *channel) *gobreaker.CircuitBreaker[struct{}] {
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      breakFor,
		ReadyToTrip:  func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= breakAfter },
		IsSuccessful: func(err error) bool { return !unanswered(err) },
		IsExcluded:   func(err error) bool { return err != nil && unanswered(err) && ch.conn.GetState() != connectivity.Ready },
	})
}

// retryBudget is how many retries may still be made.
type retryBudget struct {
	mu    sync.Mutex
	spent float64 // of retryMost
}

func (b *retryBudget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent = max(b.spent-retryShare, 0)
}

func (b *retryBudget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent+1 > retryMost {
		return false
	}
	b.spent++
	return true
}
