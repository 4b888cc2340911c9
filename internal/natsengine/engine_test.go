package natsengine

import (
	"io"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/waits"
)

func TestMain(m *testing.M) {
	waits.Beside(16)
	goleak.VerifyTestMain(m)
}

var discard = slog.New(slog.NewTextHandler(io.Discard, nil))

// logger is silent unless RUNNEL_TEST_LOG is set.
func logger() *slog.Logger {
	if os.Getenv("RUNNEL_TEST_LOG") == "" {
		return discard
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

func open(t natstest.TB, o Options) *Engine {
	t.Helper()
	if o.Logger == nil {
		o.Logger = logger()
	}
	if o.Namespace == nil {
		o.Namespace = func(string) (engine.Config, bool) { return engine.Config{History: engine.HistoryDisk}, true }
	}
	e, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}
