package load

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// yield has this process run only where others leave room: its clients stand for machines of their own. SCHED_IDLE rather than a nice value,
// since a thread of a low priority that runs may still hold up one that wakes, for some milliseconds. A system that does not allow it measures all
// the same.
func yield() {
	// It is each thread's; new ones take that of the thread that makes them.
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		}
	}
}
