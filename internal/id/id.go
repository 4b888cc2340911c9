// Package id makes event ids.
package id

import (
	"bufio"
	"crypto/rand"
	"sync"

	"github.com/google/uuid"
)

// Source makes UUIDs of version 7 (RFC 9562). Randomness is read from the system in blocks: a system call for every event
// would cost more than publishing it. Safe for concurrent use.
type Source struct {
	mu     sync.Mutex
	random *bufio.Reader
}

// NewSource returns a source.
func NewSource() *Source { return &Source{random: bufio.NewReader(rand.Reader)} }

// New returns the next id.
func (s *Source) New() (string, error) {
	s.mu.Lock()
	u, err := uuid.NewV7FromReader(s.random)
	s.mu.Unlock()
	return u.String(), err
}
