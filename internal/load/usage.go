package load

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Process is a process of this machine whose use of CPU and memory is read from /proc. The zero Process is none, and tells nothing.
type Process struct{ PID int }

// Self is this process.
func Self() Process { return Process{os.Getpid()} }

// ticks is USER_HZ, which Linux fixes at 100 for everything it shows.
const ticks = 100

// CPU is the seconds of CPU time that the process has used, user and system; nil if that cannot be read.
func (p Process) CPU() *float64 {
	if p.PID == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return nil
	}
	// The name in parentheses may hold anything; behind it the fields are numbers: utime and stime are the 12th and 13th.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return nil
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		return nil
	}
	v := (user + system) / ticks
	return &v
}

// RSS is the resident memory of the process in bytes; nil if that cannot be read.
func (p Process) RSS() *float64 {
	if p.PID == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return nil
	}
	pages, err := strconv.ParseFloat(fields[1], 64)
	if err != nil {
		return nil
	}
	v := pages * float64(os.Getpagesize())
	return &v
}

// Since is what was used since an earlier reading; nil if either is missing.
func Since(before, now *float64) *float64 {
	if before == nil || now == nil {
		return nil
	}
	v := *now - *before
	return &v
}

// Settled waits until the process's memory has stopped growing, at most a second, and returns it.
func (p Process) Settled() *float64 {
	last := p.RSS()
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		now := p.RSS()
		if d := Since(last, now); d == nil || *d < float64(os.Getpagesize()) {
			return now
		}
		last = now
	}
	return last
}

// Listener finds the process of this machine that listens on a TCP address; the zero Process if the address is another machine's, or
// the process cannot be seen.
func Listener(address string) Process {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !Loopback(host) {
		return Process{}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Process{}
	}
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n") {
			if inode := listens(strings.Fields(line), uint16(n)); inode != "" {
				inodes["socket:["+inode+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return Process{}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return Process{}
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && inodes[target] {
			if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
				return Process{pid}
			}
		}
	}
	return Process{}
}

// listens returns the inode of a line of /proc/net/tcp that is a listener on the port: its fields are number, local address, remote
// address, state (0A: listens) and, as the tenth, the inode.
func listens(fields []string, port uint16) string {
	if len(fields) < 10 || fields[3] != "0A" {
		return ""
	}
	_, hexPort, _ := strings.Cut(fields[1], ":")
	b, err := hex.DecodeString(hexPort)
	if err != nil || len(b) != 2 || uint16(b[0])<<8|uint16(b[1]) != port {
		return ""
	}
	return fields[9]
}

// Loopback says whether a host is this machine, by its own word alone.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
