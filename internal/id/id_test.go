package id_test

import (
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/runnelhq/runnel/internal/id"
)

func TestNew(t *testing.T) {
	s := id.NewSource()
	var mu sync.Mutex
	seen := map[string]bool{}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 5000 {
				text, err := s.New()
				u, bad := uuid.Parse(text)
				if err != nil || bad != nil || u.Version() != 7 {
					t.Error(text, err, bad)
					return
				}
				mu.Lock()
				seen[text] = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(seen) != 20_000 {
		t.Errorf("of 20,000 ids %d are different", len(seen))
	}
}
