// Package audit writes who connected, was refused, subscribed, and was cut, and why: one structured line each. Of each kind only so many
// are written per second, so that nobody can fill a disk by knocking; how many were left out is said with the next.
//
// A Log is safe for concurrent use. A nil Log writes nothing.
package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Kind is what has happened: one of a fixed set of words.
type Kind string

// The kinds.
const (
	Connected  Kind = "connected"  // a stream was opened
	Refused    Kind = "refused"    // a call was refused: nothing valid was shown
	Denied     Kind = "denied"     // what was asked for is not allowed
	Subscribed Kind = "subscribed" // a subscription began
	Refreshed  Kind = "refreshed"  // a token was renewed in its stream
	Cut        Kind = "cut"        // the server ended a stream, a subscription or a connection
	Ended      Kind = "ended"      // a stream is over
	Revoked    Kind = "revoked"    // somebody revoked, or took that back
	Operated   Kind = "operated"   // an operator has acted upon the server
)

// Message is the message of all lines.
const Message = "audit"

const (
	perSecond = 50
	burst     = 200
)

// Log is where lines go.
type Log struct {
	to *slog.Logger

	mu    sync.Mutex
	kinds map[Kind]*kind
}

type kind struct {
	limiter *rate.Limiter
	left    int // out since the last line
}

// New returns a Log that writes to a logger.
func New(to *slog.Logger) *Log { return &Log{to: to, kinds: map[Kind]*kind{}} }

// Note writes a line. Values must not hold secrets; text that a client chose is escaped by the logger.
func (l *Log) Note(k Kind, values ...slog.Attr) {
	if l == nil {
		return
	}
	l.mu.Lock()
	of := l.kinds[k]
	if of == nil {
		of = &kind{limiter: rate.NewLimiter(perSecond, burst)}
		l.kinds[k] = of
	}
	if !of.limiter.AllowN(time.Now(), 1) {
		of.left++
		l.mu.Unlock()
		return
	}
	left := of.left
	of.left = 0
	l.mu.Unlock()
	all := append([]slog.Attr{slog.String("event", string(k))}, values...)
	if left > 0 {
		all = append(all, slog.Int("suppressed", left))
	}
	l.to.LogAttrs(context.Background(), slog.LevelInfo, Message, all...)
}
