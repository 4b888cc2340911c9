package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/natsengine"
)

// revocation is one as nodes share it.
type revocation struct {
	auth.Revocation
	Lifted bool   `json:"lifted,omitempty"`
	By     string `json:"by"` // node
}

const (
	// forgetLifted is how long it is kept that a revocation was lifted: who does not hear of it within that time starts anew, and without it.
	forgetLifted = 24 * time.Hour
	storeTimeout = 10 * time.Second
)

// openRevocations opens what was revoked: a file in the data directory, or what the nodes of a cluster share.
func (s *Server) openRevocations() (*auth.Revocations, error) {
	e, shared := s.engine.(*natsengine.Engine)
	if !shared {
		return auth.OpenRevocations(filepath.Join(s.cfg.Data, "revocations.json"))
	}
	var table *natsengine.Table
	all := auth.ShareRevocations(func(one auth.Revocation, lifted bool) error {
		value, err := json.Marshal(revocation{one, lifted, s.node})
		if err != nil {
			return err
		}
		forget := time.Duration(0)
		if lifted {
			forget = forgetLifted
		} else if !one.Until.IsZero() {
			forget = time.Until(one.Until) + time.Minute
		}
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		return table.Put(ctx, base64.RawURLEncoding.EncodeToString([]byte(one.Kind+" "+one.Value)), value, forget)
	})
	var err error
	table, err = e.Table("revocations", func(value []byte) {
		var r revocation
		if json.Unmarshal(value, &r) != nil {
			return // not ours
		}
		all.Learn(r.Revocation, r.Lifted)
		if guard := s.security.guard.Load(); guard != nil && r.By != s.node { // here the one who revokes cuts
			cut := guard.Sever()
			s.security.audit.Note(audit.Revoked, slog.String("node", r.By), slog.String("kind", r.Kind), slog.String("value", r.Value), slog.Bool("restored", r.Lifted), slog.Int("cut", cut))
		}
	})
	return all, err
}
