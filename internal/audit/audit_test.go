package audit

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever knocks ten thousand times fills no disk, and hides nothing that others do; how much was left out is said.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := New(slog.New(slog.NewTextHandler(&b, nil)))
		for range 10_000 {
			l.Note(Refused, slog.String("reason", "x\nmsg=audit event=connected"))
		}
		l.Note(Revoked)
		if n := strings.Count(b.String(), "\n"); n != burst+1 || !strings.Contains(b.String(), "event=revoked") {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Second)
		b.Reset()
		for range 10_000 {
			l.Note(Refused)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != perSecond || !strings.Contains(lines[0], "suppressed=9800") || strings.Contains(lines[1], "suppressed") {
			t.Errorf("%d lines, first %q", len(lines), lines[0])
		}
		var none *Log
		none.Note(Refused)
	})
}
