package server_test

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	channelzv1 "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// What gRPC knows of everybody's connections is for administrators, and only where it is switched on.
func TestChannelz(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	cfg := server.Config{
		Issuers: map[string]server.Issuer{"test": id.issuer}, Audit: "off", Channelz: true,
		Roles: map[string]server.Role{"operator": {Claims: []string{"role=operator"}, Admin: []string{">"}}, "user": {Authenticated: true, Subscribe: []string{"a.>"}}},
	}
	call := func(s *runneltest.Server, token string) (*channelzv1.GetServersResponse, error) {
		t.Helper()
		conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return channelzv1.NewChannelzClient(conn).GetServers(bearer(t.Context(), token), &channelzv1.GetServersRequest{})
	}
	operator, user := id.token(t, "op", time.Hour, jwt.MapClaims{"role": "operator"}), id.token(t, "alice", time.Hour, nil)
	on := runneltest.StartServer(t, cfg)
	if res, err := call(on, operator); err != nil || len(res.GetServer()) == 0 {
		t.Errorf("%v, %v", res, err)
	}
	for token, want := range map[string]codes.Code{user: codes.PermissionDenied, "": codes.Unauthenticated} {
		if _, err := call(on, token); status.Code(err) != want {
			t.Errorf("%v, want %v", err, want)
		}
	}
	cfg.Channelz = false
	if _, err := call(runneltest.StartServer(t, cfg), operator); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}
