package grpcapi

import (
	"context"
	"log/slog"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/topic"
)

// subscribe adds a subscription as the caller, whose rights may change at the same time.
func (st *stream) subscribe(ctx context.Context, request uint64, r *runnelv1.Subscription) error {
	who := st.by.who()
	err := st.s.broker.Subscribe(ctx, st.one, request, who, r)
	if err != nil {
		return err
	}
	st.by.note(audit.Subscribed, slog.String("pattern", r.GetPattern()))
	if st.by.access.Load() != who.Access { // it was checked against rights that are over
		st.by.recheck()
	}
	return nil
}

// refresh answers RefreshToken.
func (st *stream) refresh(ctx context.Context, request uint64, token string) error {
	expires, err := st.by.refresh(ctx, token)
	if err != nil {
		return err
	}
	st.one.Control(&runnelv1.Control{RequestId: request, Control: &runnelv1.Control_TokenRefreshed{
		TokenRefreshed: &runnelv1.TokenRefreshed{ExpiresMs: expires.UnixMilli()},
	}})
	st.by.recheck()
	return nil
}

// expiring warns the client.
func (st *stream) expiring(at time.Time) {
	st.one.Control(&runnelv1.Control{Control: &runnelv1.Control_Notice{Notice: &runnelv1.Notice{
		Kind: runnelv1.NoticeKind_NOTICE_KIND_TOKEN_EXPIRING, Reason: "the token or certificate expires at " + at.UTC().Format(time.RFC3339),
	}}})
}

// recheck ends what the caller is no longer allowed. A subscription is all or nothing.
func (st *stream) recheck() {
	access := st.by.access.Load()
	ended := st.one.Restrict(func(p topic.Pattern) *spb.Status {
		if access.Allowed(auth.Subscribe, p) {
			return nil
		}
		status, _ := proto.Clone(statusOf(broker.Forbidden(auth.Subscribe, p)).Proto()).(*spb.Status)
		return status
	})
	for _, p := range ended {
		st.by.note(audit.Cut, slog.String("reason", "no longer allowed"), slog.String("pattern", p.String()))
	}
}
