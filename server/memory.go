package server

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// MinMemoryBytes is the least budget that a server with the default limits can work with: some large events of each kind.
const MinMemoryBytes = 32 << 20

// fallbackMemory is assumed where the system says nothing.
const fallbackMemory = 1 << 30

// usableMemory is how much memory the process may use, as far as the system says: the least of Go's own limit, the control group's
// (version 2 or 1) and the machine's memory.
func usableMemory() int64 {
	least := debug.SetMemoryLimit(-1)
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if b, err := os.ReadFile(file); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
				least = min(least, n)
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		least = min(least, memTotal(string(b)))
	}
	if least == math.MaxInt64 {
		return fallbackMemory
	}
	return least
}

// memTotal reads the first line of /proc/meminfo: "MemTotal:  24562324 kB".
func memTotal(info string) int64 {
	line, _, _ := strings.Cut(info, "\n")
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != "MemTotal:" {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return math.MaxInt64
	}
	return n << 10
}
