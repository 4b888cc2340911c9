package server_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// Names that are not what they seem are no names, for every call that takes one, and before anybody is asked whether they are allowed.
func TestNamesThatAreNone(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory"}})
	c := newClients(t, s.Addr)
	for _, name := range []string{
		"", ".", "a.", ".a", "a..b", "a b", "a.b\x00", "a.b\r\nc", "a\n", "a/b", "a.b/../c", "a\\b", "%61", "a.b%2ec", "a.\u200bb", "аcme.x" /* Cyrillic a */, "a.ｂ",
		"a.{sub}", "*", ">", "*.a", ">.a", "a.>.b", "a.b>", "a.*b", "$SYS.a", "_INBOX.*.x.", strings.Repeat("x", 256), strings.Repeat("a.", 16) + "a",
		strings.Repeat("x", 64<<10),
	} {
		for _, call := range calls {
			if call.needs == "administer" {
				continue
			}
			if err := call.do(t.Context(), c, name); status.Code(err) != codes.InvalidArgument || reason(err) != "INVALID_FIELD" {
				t.Errorf("%s %.40q: %v", call.name, name, err)
			} else if len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\x00\r\n") {
				t.Errorf("%s %.40q: the answer is %q", call.name, name, err)
			}
		}
	}
	for _, name := range []string{"a.*", "a.>", "a.*.>"} { // patterns are no topics
		for _, call := range calls {
			if call.needs == "administer" {
				continue
			}
			if err := call.do(t.Context(), c, name); !call.patterns && status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s %q: %v", call.name, name, err)
			}
		}
	}
}

func TestHeadersThatAreNone(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{Defaults: server.Namespace{History: "memory"}})
	c := newClients(t, s.Addr)
	for _, h := range [][2]string{
		{"", "v"}, {"a b", "v"}, {"a:b", "v"}, {"a\r\nb", "v"}, {"é", "v"}, {"Nats-Msg-Id", "v"}, {"nats-expected-last-sequence", "v"}, {"NATS-", "v"},
		{"a", "v\r\nNats-Msg-Id: 1"}, {"a", "v\x00"}, {"a", "\n"},
	} {
		_, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b", Headers: map[string]string{h[0]: h[1]}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", h, err)
		}
	}
	for _, h := range [][2]string{{"traceparent", "00-x"}, {"X-Natsy", "é ✓ \t"}, {"nats", ""}} {
		if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b", Headers: map[string]string{h[0]: h[1]}}); err != nil {
			t.Errorf("%q: %v", h, err)
		}
	}
	for _, id := range []string{"", "a b", strings.Repeat("x", 129)} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "client-id", id)
		if _, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.b"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("client-id %q: %v", id, err)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "client-id", "a", "client-id", "b")
	if _, err := c.Publish(ctx, &runnelv1.PublishRequest{Topic: "a.b"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("two client-ids: %v", err)
	}
}

// logs collects what a server writes.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The audit log says who came, what they did and why they were cut; what clients choose forges no line of it; and no secret is ever in a
// log, an error or a metric.
func TestAuditAndSecrets(t *testing.T) {
	const canary = "CANARY"
	id := newAuthority(t)
	out := &logs{}
	s := secured(t, id, server.Config{Audit: "log", Admin: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	c := newClients(t, s.Addr)
	token := id.token(t, "alice", time.Hour, jwt.MapClaims{"role": "half", canary: canary})
	var answers []string
	fails := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("that should have failed")
		}
		answers = append(answers, err.Error())
	}
	for _, bad := range []string{token + "x", "Basic " + canary, canary, strings.Repeat(canary, 1000), "e." + canary + ".z", id.token(t, canary+"\nevent=connected", time.Hour, nil)} {
		_, err := c.GetTopic(bearer(t.Context(), bad), &runnelv1.GetTopicRequest{Topic: "a.b"})
		fails(err)
	}
	stream, err := c.EstablishStream(bearer(t.Context(), token))
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, stream, 1, "a.open.>")
	fails(command(bearer(t.Context(), token), c, &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Pattern: "a.closed"}}}))
	for _, next := range []string{canary, id.token(t, "alice", time.Hour, jwt.MapClaims{"role": "none", "x": canary})} {
		if err := stream.Send(&runnelv1.StreamRequest{RequestId: 5, Request: &runnelv1.StreamRequest_RefreshToken{RefreshToken: &runnelv1.RefreshToken{Token: next}}}); err != nil {
			t.Fatal(err)
		}
		if err := control(stream, func(c *runnelv1.Control) bool { return c.GetRequestId() == 5 }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newClients(t, s.Addr).admin.Revoke(bearer(t.Context(), id.token(t, "root", time.Hour, role("admin"))), &runnelv1.RevokeRequest{Kind: runnelv1.RevokedKind_REVOKED_KIND_SUBJECT, Value: "alice"}); err != nil {
		t.Fatal(err)
	}
	fails(control(stream, func(*runnelv1.Control) bool { return false }))
	metrics := get(t, "http://"+s.AdminAddr+"/metrics")
	s.Stop()
	all := out.String()
	for _, want := range []string{
		"event=connected client=alice", "event=subscribed client=alice", "pattern=a.open.>", "event=denied", "not allowed to subscribe to a.closed", "event=refused", "its signature",
		`reason="no longer allowed"`, "event=refreshed", "event=revoked client=root kind=subject value=alice cut=", "reason=revoked",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the log lacks %q:\n%s", want, all)
		}
	}
	secrets := []string{canary, token, strings.Split(token, ".")[2], string(id.secret)}
	for what, text := range map[string]string{"log": all, "answers": strings.Join(answers, "\n"), "metrics": metrics} {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is in the %s:\n%s", what, text)
			}
		}
	}
	for _, client := range []string{"alice", "root", "a.open"} {
		if strings.Contains(metrics, client) {
			t.Errorf("what a client chose is in the metrics: %s", client)
		}
	}
	for line := range strings.Lines(all) {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("a forged line: %q", line)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
