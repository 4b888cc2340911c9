package system

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// collectSource is added to the Runnel server when it is built, and to nothing else of it: other processes can then make it collect
// its garbage, as the other servers here do.
const collectSource = `package main

import (
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func init() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	go func() { // ends with the process: nobody could wait for it, since the server knows nothing of it
		for range c {
			debug.FreeOSMemory()
		}
	}()
}
`

// collectOnSignal does the same for the servers of this program, until stop is called.
func collectOnSignal() (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	var group sync.WaitGroup
	group.Go(func() {
		for range c {
			debug.FreeOSMemory()
		}
	})
	return func() { signal.Stop(c); close(c); group.Wait() }
}

// Collected makes the server collect its garbage and returns its resident memory then, in bytes.
func (s *Server) Collected() (*float64, error) {
	if err := s.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return nil, fmt.Errorf("the server has ended: %w", err)
	}
	return s.Steady(), nil
}

// Steady waits until the server's resident memory has neither grown nor shrunk by a hundredth for half a second, at most ten seconds.
func (s *Server) Steady() *float64 {
	const step, calm = 100 * time.Millisecond, 5
	last, still := s.Process.RSS(), 0
	for range 100 {
		time.Sleep(step)
		now := s.Process.RSS()
		if now == nil || last == nil {
			return now
		}
		if d := (*now - *last) / max(*last, float64(os.Getpagesize())); d > -0.01 && d < 0.01 {
			if still++; still == calm {
				return now
			}
			continue
		}
		last, still = now, 0
	}
	return last
}
