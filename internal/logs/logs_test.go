package logs

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// One reason that repeats itself drowns no other, and says how often it did.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(Limit(slog.NewTextHandler(&b, nil), "audit")).With("a", 1).WithGroup("g")
		count := func() int {
			n := strings.Count(b.String(), "\n")
			b.Reset()
			return n
		}
		for i := range 1000 {
			log.Error("the disk is full", "n", i)
		}
		log.Info("something else")
		if n := count(); n != burst+1 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Second)
		log.With("b", 2).Error("the disk is full")
		if text := b.String(); !strings.Contains(text, "suppressed=950") || !strings.Contains(text, "a=1") {
			t.Errorf("%s", text)
		}
		b.Reset()
		for range 1000 {
			log.Info("audit")
		}
		if n := count(); n != 1000 {
			t.Errorf("%d lines of what has a limit of its own", n)
		}
		for i := range 3 * maxMessages {
			log.Info(fmt.Sprint("message ", i))
		}
		if n := count(); n > maxMessages+burst {
			t.Errorf("%d lines of made-up messages", n)
		}
	})
}
