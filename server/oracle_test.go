package server_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// authority makes tokens that a server with its issuer takes.
type authority struct {
	secret []byte
	issuer server.Issuer
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{secret: []byte(rand.Text() + rand.Text())}
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, a.secret, 0o600); err != nil {
		t.Fatal(err)
	}
	a.issuer = server.Issuer{Issuer: "test", Audience: []string{"runnel"}, Algorithms: []string{"HS256"}, Keys: []string{path}}
	return a
}

// token makes a token that lives for a time, rounded up to a whole second, as exp has them.
func (a *authority) token(t testing.TB, sub string, life time.Duration, claims jwt.MapClaims) string {
	t.Helper()
	now := time.Now()
	c := jwt.MapClaims{
		"iss": "test", "aud": "runnel", "sub": sub, "jti": rand.Text()[:8],
		"iat": now.Unix(), "exp": now.Add(life + time.Second - 1).Unix(),
	}
	maps.Copy(c, claims)
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(a.secret)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bearer is a context that carries a token.
func bearer(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// clientID is a context of a client with that id.
func clientID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "client-id", id)
}

// drained stands for what Drain would do to the test's server, where it is allowed.
const drained = "drained"

// clients are plain generated clients on one connection.
type clients struct {
	runnelv1.StreamServiceClient
	admin runnelv1.AdminServiceClient
}

func newClients(t testing.TB, addr string) clients {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return clients{runnelv1.NewStreamServiceClient(conn), runnelv1.NewAdminServiceClient(conn)}
}

// what a call needs: one of the verbs on what it names; none: nothing but to be authenticated.
type call struct {
	name  string
	needs string // verbs, separated by spaces
	// on takes a topic or a pattern; names that are no topics are refused for that reason, and left out.
	patterns bool
	do       func(ctx context.Context, c clients, name string) error
}

// first is the error with which a stream begins; nil if it begins well.
func first(s grpc.ServerStreamingClient[runnelv1.StreamResponse], err error) error {
	for err == nil {
		var m *runnelv1.StreamResponse
		if m, err = s.Recv(); err == nil {
			for _, c := range m.GetControls() {
				if c.GetSubscribed() != nil {
					return nil
				}
			}
		}
	}
	return err
}

// command is the answer to one request of a session.
func command(ctx context.Context, c clients, r *runnelv1.StreamRequest) error {
	s, err := c.EstablishStream(ctx)
	if err != nil {
		return err
	}
	r.RequestId = 7
	if err := s.Send(r); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		for _, c := range m.GetControls() {
			if c.GetRequestId() == 7 {
				if e := c.GetCommandError(); e != nil {
					return status.FromProto(e.GetStatus()).Err()
				}
				return nil
			}
		}
	}
}

var calls = []call{
	{"Publish", "publish", false, func(ctx context.Context, c clients, name string) error {
		_, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: name})
		return err
	}},
	{"PublishStream", "publish", false, func(ctx context.Context, c clients, name string) error {
		s, err := c.PublishStream(ctx)
		if err != nil {
			return err
		}
		if err := s.Send(&runnelv1.PublishRequest{Topic: name}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = s.CloseAndRecv()
		return err
	}},
	{"EstablishStream publish", "publish", false, func(ctx context.Context, c clients, name string) error {
		return command(ctx, c, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: name}}})
	}},
	{"EstablishStream subscribe", "subscribe", true, func(ctx context.Context, c clients, name string) error {
		return command(ctx, c, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Pattern: name}}})
	}},
	{"Subscribe", "subscribe", true, func(ctx context.Context, c clients, name string) error {
		return first(c.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: name}}}))
	}},
	{"Subscribe earliest", "subscribe", true, func(ctx context.Context, c clients, name string) error {
		return first(c.Subscribe(ctx, &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{earliest(name)}}))
	}},
	{"ReadHistory", "history", true, func(ctx context.Context, c clients, name string) error {
		return first(c.ReadHistory(ctx, &runnelv1.ReadHistoryRequest{Pattern: name}))
	}},
	{"ReadHistory last", "subscribe history", true, func(ctx context.Context, c clients, name string) error {
		return first(c.ReadHistory(ctx, &runnelv1.ReadHistoryRequest{Pattern: name, Start: &runnelv1.StartPosition{At: &runnelv1.StartPosition_LastEvent{}}}))
	}},
	{"GetTopic", "subscribe history", false, func(ctx context.Context, c clients, name string) error {
		_, err := c.GetTopic(ctx, &runnelv1.GetTopicRequest{Topic: name})
		return err
	}},
	{"ListTopics", "subscribe history", true, func(ctx context.Context, c clients, name string) error {
		_, err := c.ListTopics(ctx, &runnelv1.ListTopicsRequest{Pattern: name})
		return err
	}},
	{"ListNodes", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.ListNodes(ctx, &runnelv1.ListNodesRequest{})
		return err
	}},
	{"GetServerInfo", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.GetServerInfo(ctx, &runnelv1.GetServerInfoRequest{})
		return err
	}},
	{"ListSessions", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.ListSessions(ctx, &runnelv1.ListSessionsRequest{})
		return err
	}},
	{"GetSession", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.GetSession(ctx, &runnelv1.GetSessionRequest{SessionId: "none"})
		return past(err)
	}},
	{"Disconnect", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.Disconnect(ctx, &runnelv1.DisconnectRequest{SessionId: "none"})
		return past(err)
	}},
	{"ListNamespaces", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.ListNamespaces(ctx, &runnelv1.ListNamespacesRequest{})
		return err
	}},
	{"ListBusyTopics", "administer", true, func(ctx context.Context, c clients, name string) error {
		_, err := c.admin.ListBusyTopics(ctx, &runnelv1.ListBusyTopicsRequest{Pattern: name})
		return err
	}},
	{"TrimNamespace", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.TrimNamespace(ctx, &runnelv1.TrimNamespaceRequest{Namespace: "nobody"})
		return past(err)
	}},
	{"DeleteNamespace", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.DeleteNamespace(ctx, &runnelv1.DeleteNamespaceRequest{Namespace: "nobody"})
		return past(err)
	}},
	{"Reload", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.Reload(ctx, &runnelv1.ReloadRequest{})
		return past(err)
	}},
	{"GetConfiguration", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.GetConfiguration(ctx, &runnelv1.GetConfigurationRequest{})
		return past(err)
	}},
	{"Drain", "administer", true, func(ctx context.Context, c clients, name string) error {
		if name == drained {
			return nil // whoever may would end the test
		}
		_, err := c.admin.Drain(ctx, &runnelv1.DrainRequest{})
		return err
	}},
	{"ListRevocations", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.ListRevocations(ctx, &runnelv1.ListRevocationsRequest{})
		return err
	}},
	{"Revoke", "administer", true, func(ctx context.Context, c clients, _ string) error {
		_, err := c.admin.Revoke(ctx, &runnelv1.RevokeRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_TOKEN, Value: "none-has-this"})
		return err
	}},
	{"Restore", "administer", true, func(ctx context.Context, c clients, _ string) error {
		if _, err := c.admin.Revoke(ctx, &runnelv1.RevokeRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_TOKEN, Value: "restored"}); err != nil {
			return err
		}
		_, err := c.admin.Restore(ctx, &runnelv1.RestoreRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_TOKEN, Value: "restored"})
		return err
	}},
}

// past is err without what comes behind the permission: there is no such thing here.
func past(err error) error {
	if code := status.Code(err); code == codes.NotFound || code == codes.FailedPrecondition {
		return nil
	}
	return err
}

// What is asked for, of a tenant's namespace: does that match only topics under open, or below the client's own?
var asked = []struct {
	name string // behind the namespace
	wild bool
	open bool // within NS.open.>
	own  bool // within NS.users.alice.>
	shut bool // overlaps NS.open.shut.>
}{
	{"open.a", false, true, false, false},
	{"open.absent", false, true, false, false},
	{"open", false, false, false, false},
	{"open.shut.a", false, true, false, true},
	{"open.shut", false, true, false, false},
	{"users.alice.x", false, false, true, false},
	{"users.bob.x", false, false, false, false},
	{"open.>", true, true, false, true},
	{"open.*", true, true, false, false},
	{"open.*.>", true, true, false, true},
	{"*.a", true, false, false, false},
	{">", true, false, false, true},
	{"users.*.x", true, false, false, false},
	{"users.alice.>", true, false, true, false},
	{"users.alice.*", true, false, true, false},
}

// asking is what of a tenant's namespace is asked for.
type asking struct{ open, own, shut bool }

// roles by name: what each grants on a tenant. Each also has its verb nowhere else.
var oracleRoles = map[string]func(a asking) bool{
	"open":    func(a asking) bool { return a.open },
	"own":     func(a asking) bool { return a.own },
	"careful": func(a asking) bool { return a.open && !a.shut },
	"tenant":  func(asking) bool { return true },
}

// Every RPC, as every kind of client, on every tenant's names and on those of nobody: allowed exactly where the table says so, and where
// it does not, what is there and what is not look the same.
func TestOracle(t *testing.T) {
	began := time.Now()
	id := newAuthority(t)
	roles := map[string]server.Role{}
	for _, verb := range []string{"publish", "subscribe", "history"} {
		for name, patterns := range map[string][2][]string{
			"open":    {{"{claim.tenant}.open.>"}, nil},
			"own":     {{"{claim.tenant}.users.{sub}.>"}, nil},
			"careful": {{"{claim.tenant}.open.>"}, {"{claim.tenant}.open.shut.>"}},
			"tenant":  {{"{claim.tenant}.>"}, nil},
		} {
			r := server.Role{Claims: []string{"role=" + name + "-" + verb}}
			switch verb {
			case "publish":
				r.Publish, r.DenyPublish = patterns[0], patterns[1]
			case "subscribe":
				r.Subscribe, r.DenySubscribe = patterns[0], patterns[1]
			case "history":
				r.History, r.DenyHistory = patterns[0], patterns[1]
			}
			roles[name+"-"+verb] = r
		}
	}
	roles["admin"] = server.Role{Claims: []string{"role=admin"}, Admin: []string{">"}}
	roles["half-admin"] = server.Role{Claims: []string{"role=half-admin"}, Admin: []string{"acme.>", "umbra.>"}}
	s := runneltest.StartServer(t, server.Config{
		Issuers: map[string]server.Issuer{"test": id.issuer}, Roles: roles, Audit: "off",
		Namespaces: map[string]server.Namespace{"acme": {History: "memory"}, "umbra": {History: "memory"}},
		Limits:     server.Limits{MaxStreamsPerConnection: 1 << 20},
	})
	c := newClients(t, s.Addr)
	all := []string{"none", "admin", "half-admin"}
	for role := range oracleRoles {
		all = append(all, role+"-publish", role+"-subscribe", role+"-history")
	}
	cases, allowed := 0, 0
	for _, role := range all {
		for _, tenant := range []string{"acme", "umbra"} {
			token := id.token(t, "alice", time.Hour, jwt.MapClaims{"role": role, "tenant": tenant})
			for _, call := range calls {
				for _, name := range asked {
					if name.wild && !call.patterns {
						continue
					}
					same := map[string]string{} // refusals, by what was named
					for _, namespace := range []string{"acme", "umbra", "nobody"} {
						want := namespace == tenant && grants(role, call.needs, name.open, name.own, name.shut)
						if call.needs == "administer" {
							want = role == "admin"
						}
						target := namespace + "." + name.name
						if want && call.name == "Drain" {
							target = drained
						}
						err := try(t, c, token, call, target)
						cases++
						if got := err == nil; got != want {
							t.Fatalf("%s of tenant %s, %s %s.%s: %v, want allowed: %v", role, tenant, call.name, namespace, name.name, err, want)
						}
						if want {
							allowed++
							continue
						}
						if status.Code(err) != codes.PermissionDenied || reason(err) != "PERMISSION_DENIED" {
							t.Fatalf("%s of tenant %s, %s %s.%s: %v", role, tenant, call.name, namespace, name.name, err)
						}
						same[strings.ReplaceAll(prototext.Format(status.Convert(err).Proto()), namespace+".", "NS.")] = namespace
					}
					if len(same) > 1 {
						t.Fatalf("%s of tenant %s, %s %s: what is there looks different: %v", role, tenant, call.name, name.name, same)
					}
				}
			}
		}
	}
	for _, service := range []grpc.ServiceDesc{runnelv1.StreamService_ServiceDesc, runnelv1.AdminService_ServiceDesc} {
		for _, method := range methodsOf(service) {
			if !slices.ContainsFunc(calls, func(c call) bool { return strings.HasPrefix(c.name+" ", method+" ") }) {
				t.Errorf("%s is not in the table", method)
			}
		}
	}
	// Nobody does nothing.
	for _, call := range calls {
		for token, what := range map[string]string{"": "no token", "x.y.z": "no token at all", id.token(t, "alice", -time.Hour, nil): "an expired token"} {
			err := try(t, c, token, call, "acme.open.a")
			cases++
			if status.Code(err) != codes.Unauthenticated || err.Error() != try(t, c, "", call, "nobody.x").Error() {
				t.Errorf("%s with %s: %v", call.name, what, err)
			}
		}
	}
	t.Logf("%d cases, of which %d allowed, in %v", cases, allowed, time.Since(began).Round(time.Millisecond))
	if allowed < 100 || cases < 5000 {
		t.Error("that is too few to mean much")
	}
}

func methodsOf(s grpc.ServiceDesc) (names []string) {
	for _, m := range s.Methods {
		names = append(names, m.MethodName)
	}
	for _, m := range s.Streams {
		names = append(names, m.StreamName)
	}
	return names
}

// grants is the table: does a role, of one verb, allow what a call needs?
func grants(role, needs string, open, own, shut bool) bool {
	name, verb, ok := strings.Cut(role, "-")
	if !ok || !strings.Contains(" "+needs+" ", " "+verb+" ") {
		return false
	}
	f := oracleRoles[name]
	return f != nil && f(asking{open, own, shut})
}

func try(t *testing.T, c clients, token string, call call, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := call.do(bearer(ctx, token), c, name)
	if status.Code(err) == codes.DeadlineExceeded {
		t.Fatal(fmt.Errorf("%s %s: %w", call.name, name, err))
	}
	return err
}
