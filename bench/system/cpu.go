package system

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// CPU is the seconds of CPU time that a process has used, read from its clock: the figures in /proc count in hundredths of a second,
// which is more than some measurements use. nil if it cannot be read.
func CPU(pid int) *float64 {
	const cpuClockOfProcess = 2 // see clock_getcpuclockid(3): the clock's number is the pid, complemented, and the kind of clock
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuClockOfProcess), &t); err != nil {
		return nil
	}
	v := float64(t.Nano()) / 1e9
	return &v
}

// CPU is the seconds of CPU time that the server has used; nil if that cannot be read.
func (s *Server) CPU() *float64 { return CPU(s.Process.PID) }

// Ticks is how long the server has run in its own code and in the kernel, in hundredths of a second; zeros if that cannot be read.
func (s *Server) Ticks() (user, kernel float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Process.PID))
	if err != nil {
		return 0, 0
	}
	// The name in parentheses may hold anything; behind it the fields are numbers: utime and stime are the 12th and 13th.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, 0
	}
	user, err1 := strconv.ParseFloat(string(fields[11]), 64)
	kernel, err2 := strconv.ParseFloat(string(fields[12]), 64)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return user, kernel
}
