// Package budget counts what the server holds in memory for its clients, by kind, against one limit. Whoever wants to hold
// more asks first; a refusal is answered by shedding, waiting or refusing work, never by holding it all the same.
//
// A nil *Budget allows everything and counts nothing. All methods are safe for concurrent use and never block, but for Wait.
package budget

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"
)

// Kind is what memory is held for.
type Kind int

// The kinds, and the share of the limit that each may fill.
const (
	Windows   Kind = iota // segments of the hub's feeds: one half
	Pages                 // pages of the log read for those behind: one quarter
	Publishes             // events taken from clients and not yet committed: one quarter
	Sessions              // streams, subscriptions and what was encoded for them alone: one half
	kinds
)

var (
	names  = [kinds]string{"windows", "pages", "publishes", "sessions"}
	shares = [kinds]int64{2, 4, 4, 2} // one of so many parts
)

// String is the kind's name in metrics.
func (k Kind) String() string { return names[k] }

// Kinds lists all kinds.
func Kinds() []Kind { return []Kind{Windows, Pages, Publishes, Sessions} }

// ErrExhausted is why work is refused.
var ErrExhausted = errors.New("the server's memory for clients is used up")

// Budget is a limit in bytes and what is used of it.
type Budget struct {
	limit int64
	total atomic.Int64
	used  [kinds]atomic.Int64
	short atomic.Int64 // when something was last refused, Unix nanoseconds; 0: never
}

// New returns a budget of limit bytes.
func New(limit int64) *Budget { return &Budget{limit: limit} }

// Limit is the whole budget in bytes.
func (b *Budget) Limit() int64 {
	if b == nil {
		return math.MaxInt64
	}
	return b.limit
}

// Share is how much of the limit a kind may fill, in bytes.
func (b *Budget) Share(k Kind) int64 {
	if b == nil {
		return math.MaxInt64
	}
	return b.limit / shares[k]
}

// Used is what is held for a kind, in bytes.
func (b *Budget) Used(k Kind) int64 {
	if b == nil {
		return 0
	}
	return b.used[k].Load()
}

// Take counts n bytes if they fit the limit and the kind's share of it.
func (b *Budget) Take(k Kind, n int64) bool {
	if b == nil {
		return true
	}
	if addBelow(&b.used[k], n, b.Share(k)) {
		if addBelow(&b.total, n, b.limit) {
			return true
		}
		b.used[k].Add(-n)
	}
	b.short.Store(time.Now().UnixNano())
	return false
}

// addBelow adds n unless that would pass most.
func addBelow(v *atomic.Int64, n, most int64) bool {
	for {
		old := v.Load()
		if old+n > most {
			return false
		}
		if v.CompareAndSwap(old, old+n) {
			return true
		}
	}
}

// Force counts n bytes that are held whatever the limit says: small things that something counted has brought along.
func (b *Budget) Force(k Kind, n int64) {
	if b == nil {
		return
	}
	b.used[k].Add(n)
	if b.total.Add(n) > b.limit {
		b.short.Store(time.Now().UnixNano())
	}
}

// Give gives n bytes back.
func (b *Budget) Give(k Kind, n int64) {
	if b == nil {
		return
	}
	b.used[k].Add(-n)
	b.total.Add(-n)
}

// shortFor is how long after a refusal memory counts as short.
const shortFor = time.Second

// Short says that something was refused a moment ago: whoever holds memory to no use should let go.
func (b *Budget) Short() bool {
	if b == nil {
		return false
	}
	at := b.short.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < shortFor
}

// retryEvery is how often Wait asks again. What is waited for is freed by clients and disks, in no order worth a queue.
const retryEvery = 5 * time.Millisecond

// Wait takes n bytes as soon as they fit, or returns ctx's error. What can never fit is ErrExhausted at once.
func (b *Budget) Wait(ctx context.Context, k Kind, n int64) error {
	if b.Take(k, n) {
		return nil
	}
	if n > b.Share(k) {
		return ErrExhausted
	}
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if b.Take(k, n) {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Block is a piece of memory that several may hold; its bytes are given back when the last lets go. A nil *Block is
// not counted.
type Block struct {
	budget *Budget
	kind   Kind
	size   int64
	refs   atomic.Int64
}

// Block returns a block of n bytes held once, or nil and false if they do not fit.
func (b *Budget) Block(k Kind, n int64) (*Block, bool) {
	if b == nil {
		return nil, true
	}
	if !b.Take(k, n) {
		return nil, false
	}
	return newBlock(b, k, n), true
}

// ForcedBlock is a block that is counted whatever the limit says.
func (b *Budget) ForcedBlock(k Kind, n int64) *Block {
	if b == nil {
		return nil
	}
	b.Force(k, n)
	return newBlock(b, k, n)
}

func newBlock(b *Budget, k Kind, n int64) *Block {
	bl := &Block{budget: b, kind: k, size: n}
	bl.refs.Store(1)
	return bl
}

// Hold adds a holder. The caller must know that somebody holds the block.
func (bl *Block) Hold() {
	if bl != nil {
		bl.refs.Add(1)
	}
}

// Drop lets go; once for New and once for each Hold.
func (bl *Block) Drop() {
	if bl != nil && bl.refs.Add(-1) == 0 {
		bl.budget.Give(bl.kind, bl.size)
	}
}
