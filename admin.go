package runnel

import (
	"context"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// RevokedKind is what can be revoked.
type RevokedKind = runnelv1.RevokedKind

// What can be revoked: all that a client id has, all that a subject has, or one token by its jti.
const (
	RevokedClient  = runnelv1.RevokedKind_REVOKED_KIND_CLIENT
	RevokedSubject = runnelv1.RevokedKind_REVOKED_KIND_SUBJECT
	RevokedToken   = runnelv1.RevokedKind_REVOKED_KIND_TOKEN
)

// Revocation takes back what was issued up to a moment.
type Revocation struct {
	Kind  RevokedKind
	Value string
	At    time.Time
	Until time.Time // zero: it stays until it is taken back
}

func revocationOf(r *runnelv1.Revocation) Revocation {
	one := Revocation{Kind: r.GetKind(), Value: r.GetValue(), At: time.UnixMilli(r.GetAtMs())}
	if r.GetUntilMs() > 0 {
		one.Until = time.UnixMilli(r.GetUntilMs())
	}
	return one
}

// Admin makes one call of AdminService: f gets a generated client, and a context that carries what the client's calls carry. It is repeated
// while it fails in a way that passes, for the connect timeout.
func Admin[T any](ctx context.Context, c *Client, f func(context.Context, runnelv1.AdminServiceClient) (T, error)) (T, error) {
	return call(ctx, c, func(ctx context.Context, l *link) (T, error) { return f(ctx, l.admin) })
}

// Revoke cuts off a client, a subject or a token at once, and keeps it off, also after a restart of the server; a token that the subject
// gets later is good. until is when what is revoked has expired anyhow; the zero time: for tokens in use when they expire, for all else
// never. It returns the revocation in force, and how many streams were cut. The caller needs the verb admin on everything.
func (c *Client) Revoke(ctx context.Context, kind RevokedKind, value string, until time.Time) (Revocation, int, error) {
	r := &runnelv1.RevokeRequest{Kind: kind, Value: value}
	if !until.IsZero() {
		r.UntilMs = until.UnixMilli()
	}
	res, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.RevokeResponse, error) { return l.admin.Revoke(ctx, r) })
	if err != nil {
		return Revocation{}, 0, err
	}
	return revocationOf(res.GetRevocation()), int(res.GetCut()), nil
}

// Restore takes a revocation back; NOT_REVOKED if there is none.
func (c *Client) Restore(ctx context.Context, kind RevokedKind, value string) error {
	_, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.RestoreResponse, error) {
		return l.admin.Restore(ctx, &runnelv1.RestoreRequest{Kind: kind, Value: value})
	})
	return err
}

// Revocations lists what is in force, oldest first.
func (c *Client) Revocations(ctx context.Context) ([]Revocation, error) {
	res, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.ListRevocationsResponse, error) {
		return l.admin.ListRevocations(ctx, &runnelv1.ListRevocationsRequest{})
	})
	if err != nil {
		return nil, err
	}
	var list []Revocation
	for _, r := range res.GetRevocations() {
		list = append(list, revocationOf(r))
	}
	return list, nil
}
