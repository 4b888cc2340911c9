package grpcapi

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/runnelhq/runnel/internal/auth"
	"github.com/runnelhq/runnel/internal/broker"
)

// Without authentication an administrator is who is on this machine.
func TestAdministratorWithoutAuthentication(t *testing.T) {
	g := NewGuard(GuardConfig{})
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true, "10.0.0.1:1": false, "[2001:db8::1]:1": false} {
		tcp, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.WithValue(t.Context(), callerKey{}, &caller{g: g, client: "c", peer: tcp})
		if _, err := g.Administrator(ctx); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := g.Administrator(t.Context()); err == nil {
		t.Error("nobody is an administrator")
	}
	if _, err := g.Administrator(context.WithValue(t.Context(), callerKey{}, &caller{g: g})); err == nil {
		t.Error("somebody from nowhere is an administrator")
	}
}

// Whatever a client puts into its metadata, it is refused, or it is somebody whose name can stand in a log; and who proves nothing is
// anonymous.
func FuzzAdmit(f *testing.F) {
	role := auth.Role{Anonymous: true}
	role.Set(auth.Publish, []string{"a.>"}, nil)
	policy, err := auth.NewPolicy(map[string]auth.Role{"r": role})
	if err != nil {
		f.Fatal(err)
	}
	revocations, err := auth.OpenRevocations(filepath.Join(f.TempDir(), "revocations.json"))
	if err != nil {
		f.Fatal(err)
	}
	off, on := NewGuard(GuardConfig{}), NewGuard(GuardConfig{Policy: policy, Revocations: revocations})
	f.Add("alice", "Bearer x.y.z", false)
	f.Add("", "", false)
	f.Add("a\r\nb", "bearer", true)
	f.Add(strings.Repeat("x", 129), strings.Repeat("Bearer ", 9), true)
	f.Fuzz(func(t *testing.T, client, authorization string, twice bool) {
		md := metadata.MD{}
		if client != "" {
			md.Append("client-id", client)
		}
		if authorization != "" {
			md.Append("authorization", authorization)
		}
		if twice {
			md.Append("client-id", client)
			md.Append("authorization", authorization)
		}
		ctx := metadata.NewIncomingContext(context.Background(), md)
		for _, g := range []*Guard{off, on} {
			c, err := g.admit(ctx, "/m")
			if err != nil {
				if !errors.Is(err, errUnauthenticated) && !as[*broker.InvalidError](err) {
					t.Errorf("%q %q: %v", client, authorization, err)
				}
				continue
			}
			if !auth.Printable(c.client) {
				t.Errorf("%q is a client's id", c.client)
			}
			if g == on && (!strings.HasPrefix(c.client, anonymousPrefix) || authorization != "") {
				t.Errorf("%q with %q is taken for %q", client, authorization, c.client)
			}
		}
	})
}
