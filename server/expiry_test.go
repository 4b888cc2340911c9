package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// secured is a server where the claim role gives a role.
func secured(t testing.TB, id *authority, cfg server.Config) *runneltest.Server {
	t.Helper()
	cfg.Issuers = map[string]server.Issuer{"test": id.issuer}
	if cfg.Roles == nil {
		cfg.Roles = map[string]server.Role{}
	}
	cfg.Roles["reader"] = server.Role{Claims: []string{"role=reader"}, Subscribe: []string{"a.>"}, History: []string{"a.>"}}
	cfg.Roles["half"] = server.Role{Claims: []string{"role=half"}, Subscribe: []string{"a.open.>"}, History: []string{"a.open.>"}}
	cfg.Roles["writer"] = server.Role{Claims: []string{"role=writer"}, Publish: []string{"a.>"}}
	cfg.Roles["admin"] = server.Role{Claims: []string{"role=admin"}, Admin: []string{">"}}
	if cfg.Namespaces == nil {
		cfg.Namespaces = map[string]server.Namespace{"a": {History: "memory"}}
	}
	if cfg.Audit == "" {
		cfg.Audit = "off"
	}
	return runneltest.StartServer(t, cfg)
}

func role(name string) jwt.MapClaims { return jwt.MapClaims{"role": name} }

// receive reads until a control that f accepts, or the stream's end.
func control(s runnelv1.StreamService_EstablishStreamClient, f func(*runnelv1.Control) bool) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		for _, c := range m.GetControls() {
			if f(c) {
				return nil
			}
		}
	}
}

func subscribe(t *testing.T, s runnelv1.StreamService_EstablishStreamClient, id uint32, pattern string) {
	t.Helper()
	if err := s.Send(&runnelv1.StreamRequest{RequestId: uint64(id), Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Id: id, Pattern: pattern}}}); err != nil {
		t.Fatal(err)
	}
	if err := control(s, func(c *runnelv1.Control) bool {
		if c.GetCommandError() != nil {
			t.Errorf("%s: %v", pattern, c.GetCommandError())
		}
		return c.GetSubscribed().GetSubscription() == id || c.GetCommandError() != nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Every kind of stream ends when its token does, and a session is warned before.
func TestStreamsEndWithTheirToken(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	s := secured(t, id, server.Config{})
	c := newClients(t, s.Addr)
	const life = 1500 * time.Millisecond
	ended := func(name string, begin time.Time, err error) {
		t.Helper()
		if status.Code(err) != codes.Unauthenticated || reason(err) != "TOKEN_EXPIRED" {
			t.Errorf("%s: %v", name, err)
		}
		if lived := time.Since(begin); lived < life/2 || lived > life+6*time.Second {
			t.Errorf("%s: ended after %v", name, lived)
		}
	}
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		bulk, err := c.PublishStream(bearer(t.Context(), id.token(t, "w", time.Hour, role("writer"))))
		for range 1000 {
			if err == nil {
				err = bulk.Send(&runnelv1.PublishRequest{Topic: "a.large", Payload: make([]byte, 20<<10)})
			}
		}
		if err == nil {
			_, err = bulk.CloseAndRecv()
		}
		if err != nil {
			t.Error(err)
			return
		}
		begin := time.Now()
		stream, err := c.ReadHistory(bearer(t.Context(), id.token(t, "r", life, role("reader"))), &runnelv1.ReadHistoryRequest{Pattern: "a.large"})
		if err == nil {
			_, err = stream.Recv()
		}
		time.Sleep(life + time.Second) // a reader that takes its time: the rest waits in the server
		for err == nil {
			_, err = stream.Recv()
		}
		ended("ReadHistory", begin, err)
	})
	group.Go(func() {
		begin := time.Now()
		stream, err := c.EstablishStream(bearer(t.Context(), id.token(t, "r", life, role("reader"))))
		if err != nil {
			t.Error(err)
			return
		}
		warned := false
		err = control(stream, func(c *runnelv1.Control) bool {
			warned = warned || c.GetNotice().GetKind() == runnelv1.NoticeKind_NOTICE_KIND_TOKEN_EXPIRING
			return false
		})
		if ended("EstablishStream", begin, err); !warned {
			t.Error("the session was not warned")
		}
	})
	group.Go(func() {
		begin := time.Now()
		stream, err := c.Subscribe(bearer(t.Context(), id.token(t, "r", life, role("reader"))), &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.>"}}})
		for err == nil {
			_, err = stream.Recv()
		}
		ended("Subscribe", begin, err)
	})
	group.Go(func() {
		begin := time.Now()
		stream, err := c.PublishStream(bearer(t.Context(), id.token(t, "w", life, role("writer"))))
		if err == nil {
			err = stream.RecvMsg(new(runnelv1.PublishSummary))
		}
		ended("PublishStream", begin, err)
	})
}

// Twenty tokens, one after the other, on one stream: it lives as long as they do together, and no longer.
func TestTwentyRefreshes(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	s := secured(t, id, server.Config{})
	c := newClients(t, s.Addr)
	const life = 3 * time.Second
	stream, err := c.EstablishStream(bearer(t.Context(), id.token(t, "r", life, role("reader"))))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for i := range 20 {
		if err := stream.Send(&runnelv1.StreamRequest{RequestId: uint64(i + 1), Request: &runnelv1.StreamRequest_RefreshToken{
			RefreshToken: &runnelv1.RefreshToken{Token: id.token(t, "r", life, role("reader"))},
		}}); err != nil {
			t.Fatal(err)
		}
		err := control(stream, func(c *runnelv1.Control) bool {
			if c.GetCommandError() != nil {
				t.Fatal(c.GetCommandError())
			}
			return c.GetRequestId() == uint64(i+1) && c.GetTokenRefreshed().GetExpiresMs() > time.Now().UnixMilli()
		})
		if err != nil {
			t.Fatalf("refresh %d: %v", i, err)
		}
		time.Sleep(100 * time.Millisecond) // tokens take real time to age
	}
	err = control(stream, func(*runnelv1.Control) bool { return false })
	if lived := time.Since(begin); reason(err) != "TOKEN_EXPIRED" || lived < 19*100*time.Millisecond+life {
		t.Errorf("it lived %v, and ended with %v", lived, err)
	}
}

// A new token is of the same subject, or it is refused and the old one stays; it never widens what is allowed beyond its own roles, and
// what it does not allow ends, in band.
func TestRefreshNarrows(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	s := secured(t, id, server.Config{})
	c := newClients(t, s.Addr)
	stream, err := c.EstablishStream(bearer(t.Context(), id.token(t, "r", time.Hour, role("reader"))))
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, stream, 1, "a.open.*")
	subscribe(t, stream, 2, "a.>")
	refresh := func(token string) (ended []uint32, refused error) {
		t.Helper()
		if err := stream.Send(&runnelv1.StreamRequest{RequestId: 99, Request: &runnelv1.StreamRequest_RefreshToken{RefreshToken: &runnelv1.RefreshToken{Token: token}}}); err != nil {
			t.Fatal(err)
		}
		// A heartbeat's answer would do; a subscription that is refused marks the end as well.
		if err := stream.Send(&runnelv1.StreamRequest{RequestId: 100, Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: &runnelv1.Unsubscribe{Subscription: 77}}}); err != nil {
			t.Fatal(err)
		}
		if err := control(stream, func(c *runnelv1.Control) bool {
			if u := c.GetUnsubscribed(); u != nil {
				ended = append(ended, u.GetSubscription())
				if codes.Code(u.GetStatus().GetCode()) != codes.PermissionDenied {
					t.Errorf("%v", u)
				}
			}
			if e := c.GetCommandError(); e != nil && c.GetRequestId() == 99 {
				refused = status.FromProto(e.GetStatus()).Err()
			}
			return c.GetRequestId() == 100
		}); err != nil {
			t.Fatal(err)
		}
		return ended, refused
	}
	for what, token := range map[string]string{
		"another subject": id.token(t, "root", time.Hour, role("reader")),
		"expired":         id.token(t, "r", -time.Hour, role("reader")),
		"nonsense":        "x",
		"empty":           "",
	} {
		if ended, refused := refresh(token); status.Code(refused) != codes.Unauthenticated || len(ended) != 0 {
			t.Errorf("%s: %v, ended %v", what, refused, ended)
		}
	}
	if ended, refused := refresh(id.token(t, "r", time.Hour, role("half"))); refused != nil || len(ended) != 1 || ended[0] != 2 {
		t.Errorf("narrowed: %v, ended %v", refused, ended)
	}
	if ended, refused := refresh(id.token(t, "r", time.Hour, role("none"))); refused != nil || len(ended) != 1 || ended[0] != 1 {
		t.Errorf("narrowed to nothing: %v, ended %v", refused, ended)
	}
	if _, refused := refresh(id.token(t, "r", time.Hour, role("reader"))); refused != nil {
		t.Error(refused)
	}
	subscribe(t, stream, 3, "a.>")
}

// Who is revoked is off at once, with all it has, and stays off after a restart; who is not stays.
func TestRevoke(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	s := secured(t, id, server.Config{Data: t.TempDir()})
	admin := newClients(t, s.Addr)
	adminCtx := bearer(t.Context(), id.token(t, "root", time.Hour, role("admin")))
	bystander, err := newClients(t, s.Addr).EstablishStream(bearer(t.Context(), id.token(t, "by", time.Hour, role("reader"))))
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, bystander, 1, "a.>")
	for kind, r := range map[string]*runnelv1.RevokeRequest{
		"client":  {Kind: runnelv1.RevokedKind_REVOKED_KIND_CLIENT, Value: "one"},
		"subject": {Kind: runnelv1.RevokedKind_REVOKED_KIND_SUBJECT, Value: "two"},
		"token":   {Kind: runnelv1.RevokedKind_REVOKED_KIND_TOKEN, Value: "jti-3"},
	} {
		sub := map[string]string{"client": "one", "subject": "two", "token": "three"}[kind]
		claims := jwt.MapClaims{"role": "reader"}
		if kind == "token" {
			claims["jti"] = "jti-3"
		}
		token := id.token(t, sub, time.Hour, claims)
		c := newClients(t, s.Addr)
		session, err := c.EstablishStream(bearer(t.Context(), token))
		if err != nil {
			t.Fatal(err)
		}
		subscribe(t, session, 1, "a.>")
		bulk, err := c.PublishStream(bearer(t.Context(), id.token(t, sub, time.Hour, jwt.MapClaims{"role": "writer", "jti": claims["jti"]})))
		if err != nil {
			t.Fatal(err)
		}
		res, err := admin.admin.Revoke(adminCtx, r)
		if err != nil {
			t.Fatal(err)
		}
		if kind == "token" && res.GetRevocation().GetUntilMs() == 0 {
			t.Error("it is known when this token expires")
		}
		began := time.Now()
		if err := control(session, func(*runnelv1.Control) bool { return false }); err == nil || time.Since(began) > 5*time.Second {
			t.Errorf("%s: session: %v after %v", kind, err, time.Since(began))
		}
		if err := bulk.RecvMsg(new(runnelv1.PublishSummary)); err == nil {
			t.Errorf("%s: bulk upload goes on", kind)
		}
		for range 2 {
			_, err = c.GetTopic(bearer(t.Context(), token), &runnelv1.GetTopicRequest{Topic: "a.b"})
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s: afterwards: %v", kind, err)
			}
			if kind != "token" {
				break
			}
		}
	}
	if _, err := admin.admin.Revoke(bearer(t.Context(), id.token(t, "by", time.Hour, role("reader"))), &runnelv1.RevokeRequest{Kind: 1, Value: "x"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a reader revokes: %v", err)
	}
	subscribe(t, bystander, 2, "a.b")
	old := id.token(t, "two", time.Hour, jwt.MapClaims{"role": "reader", "iat": time.Now().Add(-time.Minute).Unix()})
	s.Stop()
	s.Start()
	again := newClients(t, s.Addr)
	if _, err := again.GetTopic(bearer(t.Context(), old), &runnelv1.GetTopicRequest{Topic: "a.b"}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after a restart: %v", err)
	}
	list, err := again.admin.ListRevocations(adminCtx, &runnelv1.ListRevocationsRequest{})
	if err != nil || len(list.GetRevocations()) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := again.admin.Restore(adminCtx, &runnelv1.RestoreRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_SUBJECT, Value: "two"}); err != nil {
		t.Error(err)
	}
	if _, err := again.GetTopic(bearer(t.Context(), old), &runnelv1.GetTopicRequest{Topic: "a.b"}); err != nil {
		t.Errorf("after it was taken back: %v", err)
	}
	if _, err := again.admin.Restore(adminCtx, &runnelv1.RestoreRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_SUBJECT, Value: "two"}); reason(err) != "NOT_REVOKED" {
		t.Error(err)
	}
}

// The SDK asks its source in good time: its session never breaks, and it misses nothing.
func TestTokenSource(t *testing.T) {
	t.Parallel()
	id := newAuthority(t)
	s := secured(t, id, server.Config{})
	const life = 3 * time.Second
	var asked, connected atomic.Int64
	reader, err := runnel.Dial(s.Addr, runnel.WithTokenSource(func(context.Context) (runnel.Token, error) {
		next := runnel.Token{Value: id.token(t, "r", life, role("reader"))}
		if asked.Add(1)%2 == 0 {
			next.Expires = time.Now().Add(life) // else the server's warning does
		}
		return next, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	session, err := reader.Session(t.Context(), runnel.OnState(func(s runnel.State) {
		if s == runnel.StateLive {
			connected.Add(1)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	writer, err := runnel.Dial(s.Addr, runnel.WithToken(id.token(t, "w", time.Hour, role("writer"))))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	sub, err := session.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		want := fmt.Sprint(i)
		if _, err := writer.Publish(t.Context(), "a.b", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != want || e.Publisher != "w" {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
		time.Sleep(100 * time.Millisecond) // tokens take real time to age
	}
	if n, c := asked.Load(), connected.Load(); n < 2 || c != 1 {
		t.Errorf("the source was asked %d times, and the session connected %d times", n, c)
	}
	// A provider that is away for longer than a token lives costs a reconnect, and no event.
	var calls atomic.Int64
	shaky, err := runnel.Dial(s.Addr, runnel.WithTokenSource(func(context.Context) (runnel.Token, error) {
		if n := calls.Add(1); n == 2 || n == 3 {
			return runnel.Token{}, errors.New("the provider is away")
		}
		return runnel.Token{Value: id.token(t, "r", life, role("reader"))}, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer shaky.Close()
	sub, err = shaky.Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 70 {
		if i >= 40 {
			if _, err := writer.Publish(t.Context(), "a.b", []byte(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(i) {
			t.Fatalf("shaky, event %d: %+v, %v", i, e, err)
		}
	}
	if calls.Load() < 4 {
		t.Errorf("the shaky source was asked %d times", calls.Load())
	}
	// A source that only ever has bad tokens is reported, not retried for ever.
	bad, err := runnel.Dial(s.Addr, runnel.WithTokenSource(func(context.Context) (runnel.Token, error) { return runnel.Token{Value: "bad"}, nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	var e *runnel.Error
	if _, err := bad.Subscribe(t.Context(), "a.>"); !errors.As(err, &e) || e.Code != codes.Unauthenticated {
		t.Errorf("%v", err)
	}
	if _, err := bad.Topic(t.Context(), "a.b"); !errors.As(err, &e) || e.Code != codes.Unauthenticated {
		t.Errorf("%v", err)
	}
	for _, err := range bad.History(t.Context(), "a.b") {
		if !errors.As(err, &e) || e.Code != codes.Unauthenticated {
			t.Errorf("%v", err)
		}
	}
}

// Names that clients choose: their subject's, what their token allows, and for nobody else's.
func TestClientIDs(t *testing.T) {
	id := newAuthority(t)
	s := secured(t, id, server.Config{Roles: map[string]server.Role{"anybody": {Anonymous: true, Subscribe: []string{"a.>"}, Publish: []string{"a.>"}}}})
	token := id.token(t, "w", time.Hour, jwt.MapClaims{"role": "writer", "client_id": []string{"w-phone"}})
	for _, c := range []struct {
		token, client, want string
	}{
		{token, "", "w"}, {token, "w", "w"}, {token, "w-phone", "w-phone"}, {token, "other", ""}, {token, "W", ""},
		{"", "", "anon-*"}, {"", "w", "anon-w"}, {"", strings.Repeat("x", 128), "anon-" + strings.Repeat("x", 123)},
	} {
		client, err := runnel.Dial(s.Addr, runnel.WithToken(c.token), runnel.WithClientID(c.client))
		if err != nil {
			t.Fatal(err)
		}
		ack, err := client.Publish(t.Context(), "a.b", []byte("x"))
		switch {
		case c.want == "" && status.Code(err) != codes.Unauthenticated:
			t.Errorf("%q: %v", c.client, err)
		case c.want != "" && err != nil:
			t.Errorf("%q: %v", c.client, err)
		case c.want != "":
			topic, err := client.Topic(t.Context(), "a.b")
			if c.token == "" {
				if err != nil || topic.Last.Position != ack.Position || !strings.HasPrefix(topic.Last.Publisher, strings.TrimSuffix(c.want, "*")) {
					t.Errorf("%q: %+v, %v", c.client, topic.Last, err)
				}
			}
		}
		client.Close()
	}
}
