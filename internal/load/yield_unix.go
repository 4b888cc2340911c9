//go:build unix

package load

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
)

// yield has this process run only where others leave room: its clients stand for machines of their own. A system that does not allow it
// measures all the same.
func yield() {
	const last = 19
	if runtime.GOOS != "linux" {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, last)
		return
	}
	// There it is each thread's; new ones take that of the thread that makes them.
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, last)
		}
	}
}
