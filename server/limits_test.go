package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// limited checks that err is a limit's, with a time to come back.
func limited(t *testing.T, what string, err error) {
	t.Helper()
	retry := time.Duration(0)
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			retry = r.GetRetryDelay().AsDuration()
		}
	}
	if status.Code(err) != codes.ResourceExhausted || reason(err) != "LIMIT_REACHED" || retry <= 0 || retry > time.Minute {
		t.Errorf("%s: %v, retry after %v", what, err, retry)
	}
}

// Every way to publish is limited, one client's limit is nobody else's, and what a stream has published before is stored.
func TestPublishLimits(t *testing.T) {
	s := runneltest.StartServer(t, server.Config{
		Limits: server.Limits{ClientPublishRate: 5}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}, "small": {History: "memory", PublishBytes: 1 << 20}},
	})
	c := newClients(t, s.Addr)
	as := func(id string) context.Context { return clientID(t.Context(), id) }
	// A slow machine earns more than the five of the first second, but far fewer than these.
	const many = 200
	var err error
	sent := 0
	for ; err == nil && sent < many; sent++ {
		_, err = c.Publish(as("unary"), &runnelv1.PublishRequest{Topic: "a.b"})
	}
	if limited(t, "unary", err); sent < 6 {
		t.Errorf("event %d of 5 was refused", sent)
	}
	if _, err := c.Publish(as("other"), &runnelv1.PublishRequest{Topic: "a.b"}); err != nil {
		t.Error(err)
	}
	bulk, err := c.PublishStream(as("bulk"))
	if err != nil {
		t.Fatal(err)
	}
	for range many {
		if err := bulk.Send(&runnelv1.PublishRequest{Topic: "a.bulk"}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	_, err = bulk.CloseAndRecv()
	limited(t, "bulk", err)
	for _, d := range status.Convert(err).Details() {
		if sum, ok := d.(*runnelv1.PublishSummary); ok && (sum.GetAccepted() < 5 || sum.GetFirstFailedIndex() != int64(sum.GetAccepted())) {
			t.Errorf("%v", sum)
		}
	}
	session, err := c.EstablishStream(as("session"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range many {
		if err := session.Send(&runnelv1.StreamRequest{RequestId: uint64(i + 1), Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: "a.session"}}}); err != nil {
			t.Fatal(err)
		}
	}
	var accepted, refused []uint64
	if err := control(session, func(c *runnelv1.Control) bool {
		if c.GetPublished() != nil {
			accepted = append(accepted, c.GetRequestId())
		}
		if e := c.GetCommandError(); e != nil {
			limited(t, "session", status.FromProto(e.GetStatus()).Err())
			refused = append(refused, c.GetRequestId())
		}
		return len(accepted)+len(refused) == many
	}); err != nil || len(accepted) < 5 || len(refused) == 0 || !slices.Equal(accepted[:5], []uint64{1, 2, 3, 4, 5}) || refused[0] < 6 {
		t.Errorf("accepted %v, refused %v, %v", accepted, refused, err)
	}
	var last error
	for range 5 {
		_, last = c.Publish(as("large"), &runnelv1.PublishRequest{Topic: "small.x", Payload: make([]byte, 500<<10)})
	}
	limited(t, "bytes of a namespace", last)
}

// The SDK comes back when it was told to: everything arrives, once and in order.
func TestSDKHonoursLimits(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{Limits: server.Limits{ClientPublishRate: 20}, Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
	client, err := runnel.Dial(s.Addr, runnel.WithClientID("w"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := client.Publisher(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const events = 60
	for i := range events {
		if _, err := p.Publish(t.Context(), "a.b", []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for e, err := range client.History(t.Context(), "a.b") {
		if err != nil || string(e.Payload) != fmt.Sprint(n) {
			t.Fatalf("event %d: %s, %v", n, e.Payload, err)
		}
		n++
	}
	if n != events {
		t.Errorf("%d events", n)
	}
}

func TestSessionLimits(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{
		Limits:     server.Limits{ClientSessions: 2, ClientSubscriptions: 3, MaxConnectionsPerAddress: 4},
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}, "one": {History: "memory", Subscriptions: 1}},
	})
	c := newClients(t, s.Addr)
	begin := func(id string) (runnelv1.StreamService_EstablishStreamClient, error) {
		stream, err := c.EstablishStream(clientID(t.Context(), id))
		if err == nil {
			err = control(stream, func(c *runnelv1.Control) bool { return c.GetWelcome() != nil })
		}
		return stream, err
	}
	first, err1 := begin("x")
	_, err2 := begin("x")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	_, err := begin("x")
	limited(t, "a third session", err)
	other, err := begin("y")
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, first, 1, "one.x")
	answer := func(s runnelv1.StreamService_EstablishStreamClient, id uint32, pattern string) (err error) {
		t.Helper()
		if err := s.Send(&runnelv1.StreamRequest{RequestId: uint64(id), Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Id: id, Pattern: pattern}}}); err != nil {
			t.Fatal(err)
		}
		if e := control(s, func(c *runnelv1.Control) bool {
			err = status.FromProto(c.GetCommandError().GetStatus()).Err()
			return c.GetRequestId() == uint64(id)
		}); e != nil {
			t.Fatal(e)
		}
		return err
	}
	limited(t, "a second subscription in a namespace for one", answer(other, 1, "one.y"))
	subscribe(t, first, 2, "a.x")
	subscribe(t, first, 3, "a.y")
	limited(t, "a fourth subscription of a client", answer(first, 4, "a.z"))
	if err := first.CloseSend(); err != nil { // its end gives everything back
		t.Fatal(err)
	}
	if err := control(first, func(*runnelv1.Control) bool { return false }); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); answer(other, 2, "one.y") != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a subscription that is over still counts")
		}
	}
	// One connection is the clients', three more may come; those that end make room.
	var conns []net.Conn
	open := func() bool {
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			return false
		}
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	}
	for i := range 5 {
		if got, want := open(), i < 3; got != want {
			t.Errorf("connection %d: %v", i, got)
		}
	}
	for _, conn := range conns {
		conn.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); !open(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("connections that are gone still count")
		}
	}
}

// run runs a server until the test ends.
func run(t *testing.T, cfg server.Config) *server.Server {
	t.Helper()
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// New roles and limits act on those who are here; a configuration that is wrong changes nothing.
func TestReload(t *testing.T) {
	id := newAuthority(t)
	cfg := server.Config{
		Listen: "127.0.0.1:0", Admin: "off", Data: t.TempDir(), Audit: "off", Issuers: map[string]server.Issuer{"test": id.issuer},
		Roles:      map[string]server.Role{"all": {Authenticated: true, Subscribe: []string{"a.>"}, Publish: []string{"a.>"}, History: []string{"a.>"}}},
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
	}
	s := run(t, cfg)
	c := newClients(t, s.Addr().String())
	as := bearer(t.Context(), id.token(t, "x", time.Hour, nil))
	stream, err := c.EstablishStream(as)
	if err != nil {
		t.Fatal(err)
	}
	subscribe(t, stream, 1, "a.b.*")
	subscribe(t, stream, 2, "a.>")
	narrow := cfg
	narrow.Roles = map[string]server.Role{"all": {Authenticated: true, Subscribe: []string{"a.b.>"}, Publish: []string{"a.>"}}}
	narrow.Limits.ClientPublishRate = 1
	narrow.SendTimeout = time.Minute
	for what, change := range map[string]func(*server.Config){
		"no roles":          func(c *server.Config) { c.Roles = nil },
		"no authentication": func(c *server.Config) { c.Roles, c.Issuers = nil, nil },
		"a bad pattern": func(c *server.Config) {
			c.Roles = map[string]server.Role{"x": {Authenticated: true, Publish: []string{"*"}}}
		},
		"a bad namespace": func(c *server.Config) { c.Namespaces = map[string]server.Namespace{"a": {History: "x"}} },
	} {
		bad := narrow
		change(&bad)
		if _, err := s.Reload(bad); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if _, err := c.ListTopics(as, &runnelv1.ListTopicsRequest{Pattern: "a.>"}); err != nil {
		t.Errorf("a bad configuration has changed something: %v", err)
	}
	restart, err := s.Reload(narrow)
	if err != nil || !slices.Equal(restart, []string{"send_timeout"}) {
		t.Errorf("needs a restart: %v, %v", restart, err)
	}
	if err := control(stream, func(c *runnelv1.Control) bool {
		u := c.GetUnsubscribed()
		return u.GetSubscription() == 2 && codes.Code(u.GetStatus().GetCode()) == codes.PermissionDenied
	}); err != nil {
		t.Error(err)
	}
	sent := 0
	for err = nil; err == nil && sent < 50; sent++ {
		_, err = c.Publish(as, &runnelv1.PublishRequest{Topic: "a.b"})
	}
	if limited(t, "after reload", err); sent < 2 {
		t.Error("the first event was refused")
	}
	if err := first(c.ReadHistory(as, &runnelv1.ReadHistoryRequest{Pattern: "a.>"})); status.Code(err) != codes.PermissionDenied {
		t.Errorf("history: %v", err)
	}
}
