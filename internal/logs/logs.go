// Package logs keeps a log readable whatever happens: of lines with the same message only so many are written per second, and the next one
// says how many were left out. A message is the reason; what differs between lines belongs into attributes.
package logs

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	perSecond = 10
	burst     = 50
	// maxMessages bounds how many messages are told apart; what comes beyond shares one limit.
	maxMessages = 1000
)

// Limit returns a handler that passes on to h what is within the limit of its message. except are messages that have limits of their own.
func Limit(h slog.Handler, except ...string) slog.Handler {
	s := &state{messages: map[string]*message{}, except: map[string]bool{}}
	for _, m := range except {
		s.except[m] = true
	}
	return &handler{h, s}
}

type handler struct {
	slog.Handler
	s *state
}

// state is shared by all handlers that were derived from one.
type state struct {
	except map[string]bool // fixed

	mu       sync.Mutex
	messages map[string]*message
}

type message struct {
	limiter *rate.Limiter
	left    int // out since the last line
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if !h.s.except[r.Message] {
		left, ok := h.s.take(r.Message)
		if !ok {
			return nil
		}
		if left > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("suppressed", left))
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.s}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.s}
}

// take says whether a line may be written, and how many like it were not since the last one.
func (s *state) take(text string) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.messages[text]
	if m == nil && len(s.messages) >= maxMessages {
		text = ""
		m = s.messages[text]
	}
	if m == nil {
		m = &message{limiter: rate.NewLimiter(perSecond, burst)}
		s.messages[text] = m
	}
	if !m.limiter.AllowN(time.Now(), 1) {
		m.left++
		return 0, false
	}
	left, m.left = m.left, 0
	return left, true
}
