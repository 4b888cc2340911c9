package system

import "golang.org/x/sys/unix"

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
