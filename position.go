package runnel

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Position is a place in a namespace's log: everything up to Offset was seen. Its text is EPOCH:OFFSET. The zero Position is
// none.
type Position struct {
	Epoch  string
	Offset uint64
}

// ParsePosition reads EPOCH:OFFSET.
func ParsePosition(s string) (Position, error) {
	epoch, offset, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(offset, 10, 64)
	if _, hex := strconv.ParseUint(epoch, 16, 64); !ok || err != nil || hex != nil || len(epoch) != 16 {
		return Position{}, fmt.Errorf("bad position %q: it must be EPOCH:OFFSET, for example 0123456789abcdef:42", s)
	}
	return Position{epoch, n}, nil
}

func (p Position) String() string { return p.Epoch + ":" + strconv.FormatUint(p.Offset, 10) }

// MarshalText implements encoding.TextMarshaler.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Position) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePosition(string(b))
	return err
}

// Start says where a subscription or a read begins. Make one with the functions below.
type Start struct{ at *runnelv1.StartPosition }

// New starts with events accepted from now on.
func New() Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_NewEvents{NewEvents: &emptypb.Empty{}}}}
}

// Last starts with the newest event of each matching topic.
func Last() Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_LastEvent{LastEvent: &emptypb.Empty{}}}}
}

// Earliest starts with the oldest retained event.
func Earliest() Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_Earliest{Earliest: &emptypb.Empty{}}}}
}

// After starts behind a position. An empty epoch means the current one.
func After(p Position) Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_After{After: &runnelv1.Position{Epoch: p.Epoch, Offset: p.Offset}}}}
}

// Since starts with the first event accepted at or after t, in milliseconds.
func Since(t time.Time) Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_TimeMs{TimeMs: t.UnixMilli()}}}
}

// LastN starts with the newest n matching events.
func LastN(n uint32) Start {
	return Start{&runnelv1.StartPosition{At: &runnelv1.StartPosition_LastN{LastN: n}}}
}

func (s Start) last() bool {
	_, ok := s.at.GetAt().(*runnelv1.StartPosition_LastEvent)
	return ok
}
