package history

import "math"

// lineage is the list of a log's openings. Opening i begins stretch i, behind the head it came back with, and cuts from all
// earlier stretches what lies above that head.
type lineage struct {
	openings []Opening
}

// newLineage infers unknown heads: first are, per opening, the lowest offset acknowledged as new under it, or 0.
func newLineage(openings []Opening, first map[int]uint64) *lineage {
	l := &lineage{openings: openings}
	for i := range l.openings {
		if o := &l.openings[i]; o.Head == HeadUnknown && first[i] > 0 {
			o.Head = first[i] - 1 // at most: what came before it may be of unknown outcome
		}
	}
	return l
}

// stretch is where the log, in epoch j, keeps an offset.
func (l *lineage) stretch(j int, offset uint64) int {
	for ; j > 0; j-- {
		if offset > l.openings[j].Head {
			return j
		}
	}
	return 0
}

// limit is the highest offset of epoch i that the log, in epoch j >= i, has not lost.
func (l *lineage) limit(i, j int) uint64 {
	limit := uint64(math.MaxUint64)
	for _, o := range l.openings[i+1 : j+1] {
		limit = min(limit, o.Head)
	}
	return limit
}

// lost returns the opening behind epoch j that came back without an offset, if the level should have saved the offset from
// what ended the epoch before; else -1.
func (l *lineage) lost(j int, offset uint64, level uint8) int {
	for m := j + 1; m < len(l.openings); m++ {
		if o := l.openings[m]; offset > o.Head {
			if uint8(o.Survives) <= level {
				return m
			}
			return -1
		}
	}
	return -1
}

// forgot reports whether the storage was replaced between epochs i and j.
func (l *lineage) forgot(i, j int) bool {
	for _, o := range l.openings[i+1 : j+1] {
		if o.Fresh {
			return true
		}
	}
	return false
}
