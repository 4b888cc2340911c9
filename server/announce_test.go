package server_test

import (
	"strings"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A server announces itself when it takes calls. When it stops, health says so, then it withdraws, and only then sessions are told.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	announced, withdrawing, withdrawn := make(chan string, 1), make(chan struct{}), make(chan struct{})
	s := runneltest.StartServer(t, server.Config{
		Namespaces: map[string]server.Namespace{"a": {History: "memory"}},
		Announce: func(address string) func() {
			announced <- address
			return func() { close(withdrawing); <-withdrawn }
		},
	})
	if address := <-announced; address != s.Addr {
		t.Errorf("announced %s, not %s", address, s.Addr)
	}
	conn := plain(t, s.Addr)
	serving := func() healthv1.HealthCheckResponse_ServingStatus {
		t.Helper()
		res, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetStatus()
	}
	if got := serving(); got != healthv1.HealthCheckResponse_SERVING {
		t.Error(got)
	}
	stream, err := runnelv1.NewStreamServiceClient(conn).EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // Welcome
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	<-withdrawing
	if got := serving(); got != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Error(got)
	}
	told := make(chan error, 1)
	go func() {
		told <- control(stream, func(c *runnelv1.Control) bool { return c.GetDrain() != nil })
	}()
	select {
	case err := <-told:
		t.Errorf("sessions were told while the server could still be found: %v", err)
	case <-time.After(100 * time.Millisecond): // long enough for a message over loopback
	}
	close(withdrawn)
	if err := <-told; err != nil {
		t.Error(err)
	}
	<-stopped
}

// An address that is none to others is not announced.
func TestAnnounceWhat(t *testing.T) {
	t.Parallel()
	announce := func(string) func() { return func() {} }
	for _, c := range []struct {
		listen, advertise, want string
		announce                func(string) func()
	}{
		{":1", "", "advertise: :1 is no address that others reach", announce},
		{"0.0.0.0:1", "", "advertise: 0.0.0.0:1 is no address that others reach", announce},
		{"0.0.0.0:1", "[::]:1", "advertise: [::]:1 is no address that others reach", announce},
		{"127.0.0.1:1", "h:0", "advertise: h:0 is no address that others reach", announce},
		{"0.0.0.0:1", "h:1", "", announce},
		{"127.0.0.1:1", "", "", announce},
		{"0.0.0.0:1", "", "", nil},
	} {
		_, err := server.Config{Listen: c.listen, Advertise: c.advertise, Announce: c.announce, Insecure: true}.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
