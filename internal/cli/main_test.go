package cli

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/runnelhq/runnel/internal/waits"
)

// TestMain makes this test binary the runnel command where it is called by that name.
func TestMain(m *testing.M) {
	waits.Beside(4)
	testscript.Main(leakFree{m}, map[string]func(){"runnel": func() { os.Exit(Main(os.Args[1:])) }})
}

// leakFree runs the tests and fails if they leave goroutines behind.
type leakFree struct{ m *testing.M }

// Run implements testscript.TestingM.
func (l leakFree) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
