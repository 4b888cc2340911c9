package grpcapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/runnelhq/runnel/internal/audit"
)

// GateConfig says how many connections there may be.
type GateConfig struct {
	Most       int // at once; 0: no limit
	PerAddress int // of one IP address; 0: defaultPerAddress, and no limit for loopback
	Audit      *audit.Log
	Refused    func(reason string) // as a Guard's; nil: nobody counts
}

const (
	defaultPerAddress = 4096
	// sweepEvery is how often connections that are gone are forgotten, if there was no reason to look before.
	sweepEvery = 10 * time.Second
	// maxReason is how much of a handshake's failure goes to the audit log: the client has a part in it.
	maxReason = 200
)

// Gate is the credentials of a server: it lets connections in, as many as may be, and makes those of stuck or revoked clients closable.
type Gate struct {
	credentials.TransportCredentials
	s *gateState
}

// gateState counts connections. It does not wrap them, since grpc-go treats plain TCP connections better than others; so it does not
// learn when one ends, and looks when it matters.
type gateState struct {
	audit *audit.Log
	count func(string)

	mu    sync.Mutex
	cfg   GateConfig
	open  map[netip.Addr][]net.Conn
	total int
}

// NewGate returns a Gate in front of c.
func NewGate(c credentials.TransportCredentials, cfg GateConfig) *Gate {
	return &Gate{c, &gateState{audit: cfg.Audit, count: cfg.Refused, cfg: cfg, open: map[netip.Addr][]net.Conn{}}}
}

// Set changes how many connections there may be. Nobody is cut.
func (g *Gate) Set(most, perAddress int) {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	g.s.cfg.Most, g.s.cfg.PerAddress = most, perAddress
}

// Run forgets connections that are gone, until ctx ends.
func (g *Gate) Run(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			g.s.mu.Lock()
			g.s.sweepLocked()
			g.s.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// ServerHandshake implements credentials.TransportCredentials.
func (g *Gate) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if err := g.s.add(raw); err != nil {
		g.s.refused(raw, err)
		return nil, nil, err
	}
	conn, info, err := g.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		g.s.remove(raw)
		g.s.refused(raw, err)
		return nil, nil, err
	}
	return conn, &connection{AuthInfo: info, conn: raw}, nil
}

// Clone implements credentials.TransportCredentials.
func (g *Gate) Clone() credentials.TransportCredentials {
	return &Gate{g.TransportCredentials.Clone(), g.s}
}

func (s *gateState) refused(raw net.Conn, err error) {
	if s.count != nil {
		word := "handshake"
		if errors.Is(err, errConnections) || errors.Is(err, errAddress) {
			word = "connections"
		}
		s.count(word)
	}
	reason := err.Error()
	s.audit.Note(audit.Refused, slog.String("address", raw.RemoteAddr().String()), slog.String("reason", reason[:min(len(reason), maxReason)]))
}

// addressOf is a connection's IP address; false for what is not TCP, which is not counted.
func addressOf(c net.Conn) (netip.Addr, bool) {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return a.AddrPort().Addr().Unmap(), true
}

var (
	errConnections = errors.New("too many connections")
	errAddress     = errors.New("too many connections of this address")
)

func (s *gateState) add(c net.Conn) error {
	from, ok := addressOf(c)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.cfg.PerAddress
	if most == 0 && !from.IsLoopback() {
		most = defaultPerAddress
	}
	if s.cfg.Most > 0 && s.total >= s.cfg.Most {
		if s.sweepLocked(); s.total >= s.cfg.Most {
			return errConnections
		}
	}
	if most > 0 && len(s.open[from]) >= most {
		if s.pruneLocked(from); len(s.open[from]) >= most {
			return errAddress
		}
	}
	s.open[from] = append(s.open[from], c)
	s.total++
	return nil
}

func (s *gateState) remove(c net.Conn) {
	from, ok := addressOf(c)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLocked(from, func(other net.Conn) bool { return other != c })
}

func (s *gateState) sweepLocked() {
	for from := range s.open {
		s.pruneLocked(from)
	}
}

func (s *gateState) pruneLocked(from netip.Addr) {
	s.keepLocked(from, func(c net.Conn) bool { return !gone(c) })
}

func (s *gateState) keepLocked(from netip.Addr, keep func(net.Conn) bool) {
	all := s.open[from]
	kept := all[:0]
	for _, c := range all {
		if keep(c) {
			kept = append(kept, c)
		}
	}
	clear(all[len(kept):])
	s.total -= len(all) - len(kept)
	if s.open[from] = kept; len(kept) == 0 {
		delete(s.open, from)
	}
}
