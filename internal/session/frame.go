package session

import (
	"github.com/runnelhq/runnel/internal/budget"
)

const (
	// MaxFrameSlices is the most slices of a frame; grpc-go handles up to 63 without extra work.
	MaxFrameSlices = 62
	// Deliveries up to this size are copied into the frame: that is cheaper than a slice of their own, and many fit one frame.
	copyBelow = 512
	// keepScratch is the most scratch space that a frame keeps for its next use.
	keepScratch = 4 << 10
)

// Frame is one message for the transport: the concatenation of its slices is an encoded runnel.v1.StreamResponse. They are
// shared and must not be changed. The zero Frame is ready for Next; whoever owns it calls Release when the transport is done
// with the slices, and may use it again.
type Frame struct {
	Slices [][]byte
	Bytes  int
	Events int

	blocks  []*budget.Block // what Slices lie in
	budget  *budget.Budget
	charged int64  // bytes of scratch counted in budget
	scratch []byte // what was encoded for this frame alone
	open    int    // where the last slice begins in scratch, if it is its end; else -1
}

// Release gives back what the frame holds, and empties it.
func (f *Frame) Release() {
	for _, b := range f.blocks {
		b.Drop()
	}
	f.budget.Give(budget.Sessions, f.charged)
	clear(f.blocks)
	clear(f.Slices)
	scratch := f.scratch[:0]
	if cap(scratch) > keepScratch {
		scratch = nil
	}
	*f = Frame{Slices: f.Slices[:0], blocks: f.blocks[:0], scratch: scratch, open: -1}
}

// Add adds bytes that lie in block, which the frame lets go of in its time.
func (f *Frame) Add(b []byte, block *budget.Block) {
	f.Slices = append(f.Slices, b)
	f.Bytes += len(b)
	f.open = -1
	if block != nil {
		f.blocks = append(f.blocks, block)
	}
}

// charge counts the fresh bytes: the events were counted before, in their segments and pages.
func (f *Frame) charge(b *budget.Budget) {
	f.budget, f.charged = b, int64(len(f.scratch))
	b.Force(budget.Sessions, f.charged)
}

// appendFresh adds bytes that are encoded into the frame by write, which appends to what it is given.
func (f *Frame) appendFresh(write func([]byte) []byte) {
	before := len(f.scratch)
	f.scratch = write(f.scratch)
	if f.open < 0 || len(f.Slices) == 0 {
		f.open = before
		f.Slices = append(f.Slices, nil)
	}
	f.Slices[len(f.Slices)-1] = f.scratch[f.open:len(f.scratch):len(f.scratch)]
	f.Bytes += len(f.scratch) - before
}
