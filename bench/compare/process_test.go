package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An interrupt ends the command and every server.
func TestInterrupt(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("%s=%d", beCompare, os.Getpid())
	cmd := exec.Command(self, "--systems", "tcp", "--windows", "4", "--subscribers", "2", "--rounds", "1000", "--duration", "20ms", "--warmup", "0s")
	cmd.Env = append(os.Environ(), mark)
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, last := bufio.NewScanner(progress), ""
	for lines.Scan() {
		if last = lines.Text(); strings.Contains(last, "round 3 of") {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || last != "compare: interrupted" {
		t.Errorf("%v, %q", err, last)
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range environments {
		if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(mark)) {
			t.Errorf("%s is still there", file)
		}
	}
}
