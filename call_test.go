package runnel_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Many callers of a server that answers nobody do not overrun it: retries are a fifth of the calls, and a few.
func TestRetryBudget(t *testing.T) {
	const calls = 100
	var attempts atomic.Int64
	s := &script{publish: func(*runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
		attempts.Add(1)
		time.Sleep(time.Second) // all are there before the first has failed
		return nil, status.Error(codes.Unavailable, "overrun")
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		var group sync.WaitGroup
		for range calls {
			group.Go(func() {
				if _, err := c.Publish(t.Context(), "a.b", nil); status.Code(err) != codes.Unavailable {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := attempts.Load(); n < calls || n > calls*12/10+10 {
			t.Errorf("%d attempts of %d calls", n, calls)
		}
		if st := c.Stats(); st.Calls != calls || int64(st.Calls+st.Retries-st.Rejected) != attempts.Load() || st.Denied == 0 || st.Failed != calls {
			t.Errorf("%+v", st)
		}
	})
}

// What the server asks for is retried as often as it asks.
func TestRetryInfoIsNotBudgeted(t *testing.T) {
	asked := map[string]bool{}
	var mu sync.Mutex
	s := &script{publish: func(r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked[r.GetEventId()] {
			return &runnelv1.PublishResponse{EventId: r.GetEventId()}, nil
		}
		asked[r.GetEventId()] = true
		st, _ := status.New(codes.ResourceExhausted, "too fast").WithDetails(
			&errdetails.ErrorInfo{Reason: "LIMIT_REACHED", Domain: "runnel"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
		return nil, st.Err()
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		for range 50 {
			if _, err := c.Publish(t.Context(), "a.b", nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A server that has failed five times in a row is left alone for two seconds, and then tried with one call.
func TestBreaker(t *testing.T) {
	var attempts atomic.Int64
	var well atomic.Bool
	s := &script{publish: func(r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
		attempts.Add(1)
		if well.Load() {
			return &runnelv1.PublishResponse{EventId: r.GetEventId()}, nil
		}
		return nil, status.Error(codes.Unavailable, "stuck")
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		began := time.Now()
		result := make(chan error, 1)
		go func() {
			_, err := c.Publish(t.Context(), "a.b", nil)
			result <- err
		}()
		for attempts.Load() < 5 {
			time.Sleep(10 * time.Millisecond)
		}
		open := time.Now()
		time.Sleep(1900 * time.Millisecond)
		if n := attempts.Load(); n != 5 {
			t.Errorf("%d attempts after %v", n, time.Since(began))
		}
		well.Store(true)
		if err := <-result; err != nil {
			t.Error(err)
		}
		if waited := time.Since(open); waited < 2*time.Second {
			t.Errorf("tried again after %v", waited)
		}
		if st := c.Stats(); st.Calls != 1 || st.Rejected == 0 || st.Published != 1 {
			t.Errorf("%+v", st)
		}
		if _, err := c.Publish(t.Context(), "a.b", nil); err != nil {
			t.Error(err)
		}
	})
}

// A server that never answers is not waited for without end.
func TestCallTimeout(t *testing.T) {
	var ids sync.Map
	s := &script{publish: func(r *runnelv1.PublishRequest) (*runnelv1.PublishResponse, error) {
		ids.Store(r.GetEventId(), true)
		time.Sleep(time.Hour)
		return nil, errors.New("late")
	}}
	play(t, s, func(t *testing.T, c *runnel.Client) {
		began := time.Now()
		_, err := c.Publish(t.Context(), "a.b", nil)
		if e := (*runnel.Error)(nil); !errors.As(err, &e) || e.Code != codes.DeadlineExceeded || e.FromServer {
			t.Errorf("%v", err)
		}
		if waited := time.Since(began); waited < time.Minute || waited > 80*time.Second {
			t.Errorf("gave up after %v", waited)
		}
		n := 0
		ids.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Errorf("%d ids", n)
		}
		time.Sleep(2 * time.Hour) // until the handlers are over
	})
}
