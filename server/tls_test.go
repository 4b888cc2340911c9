package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// ca signs certificates for a test.
type ca struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	t.Helper()
	c := &ca{t: t, dir: t.TempDir()}
	c.cert, c.key = c.make(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	c.write("ca.pem", "CERTIFICATE", c.cert.Raw)
	return c
}

func (c *ca) make(template, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Minute)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	signer := c.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, key
}

// write replaces a file as a whole.
func (c *ca) write(name, kind string, der []byte) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// issue signs a certificate and writes it, with its key, as NAME.pem and NAME-key.pem.
func (c *ca) issue(name string, template *x509.Certificate) (cert, key string) {
	c.t.Helper()
	leaf, k := c.make(template, c.cert)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.write(name+".pem", "CERTIFICATE", leaf.Raw), c.write(name+"-key.pem", "PRIVATE KEY", pkcs8)
}

func (c *ca) server() (cert, key string) {
	return c.issue("server", &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func (c *ca) client(name string, change func(*x509.Certificate)) *tls.Certificate {
	c.t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	pair, err := tls.LoadX509KeyPair(c.issue("client", template))
	if err != nil {
		c.t.Fatal(err)
	}
	return &pair
}

// dial connects over TLS, trusting this CA.
func (c *ca) dial(addr string, pair *tls.Certificate, change func(*tls.Config)) runnelv1.StreamServiceClient {
	c.t.Helper()
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(c.cert)
	if pair != nil {
		cfg.Certificates = []tls.Certificate{*pair}
	}
	if change != nil {
		change(cfg)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return runnelv1.NewStreamServiceClient(conn)
}

// Clients are who their certificates say, by the part that is configured; whoever shows none, or one that is not good, does not come in.
func TestClientCertificates(t *testing.T) {
	authority, other := newCA(t), newCA(t)
	cert, key := authority.server()
	uri, err := url.Parse("spiffe://acme/desk/1")
	if err != nil {
		t.Fatal(err)
	}
	full := func(c *x509.Certificate) { c.URIs, c.DNSNames = []*url.URL{uri}, []string{"dev-1.acme.example"} }
	for _, c := range []struct {
		identity, name string
		change         func(*x509.Certificate)
		role           server.Role
		publisher      string // empty: refused
	}{
		{"cn", "dev-1", nil, server.Role{Certificates: []string{"dev-*"}, Publish: []string{"a.{sub}"}}, "dev-1"},
		{"cn", "other", nil, server.Role{Certificates: []string{"dev-*"}, Publish: []string{"a.>"}}, ""},
		{"uri", "dev-1", full, server.Role{Certificates: []string{"spiffe://acme/desk/*"}, Publish: []string{"a.>"}}, "spiffe://acme/desk/1"},
		{"uri", "dev-1", nil, server.Role{Authenticated: true, Publish: []string{"a.>"}}, ""},
		{"dns", "dev-1", full, server.Role{Certificates: []string{"dev-1.acme.example"}, Publish: []string{"a.>"}}, "dev-1.acme.example"},
		{"dns", "dev-1", func(c *x509.Certificate) { c.DNSNames = []string{"a", "b"} }, server.Role{Authenticated: true, Publish: []string{"a.>"}}, ""},
	} {
		s := runneltest.StartServer(t, server.Config{
			TLS:        server.TLS{Cert: cert, Key: key, ClientCA: filepath.Join(authority.dir, "ca.pem"), Identity: c.identity},
			Namespaces: map[string]server.Namespace{"a": {History: "memory"}}, Audit: "off",
			Roles: map[string]server.Role{"r": c.role, "reader": {Certificates: []string{c.name + "*", "spiffe://*"}, History: []string{"a.>"}}},
		})
		api := authority.dial(s.Addr, authority.client(c.name, c.change), nil)
		_, err := api.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.dev-1"})
		if c.publisher == "" {
			if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unauthenticated {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		topic, err2 := api.GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.dev-1"})
		if err != nil || err2 != nil || topic.GetLast().GetPublisher() != c.publisher {
			t.Errorf("%+v: %v, %v, %v", c, err, topic, err2)
		}
		for what, pair := range map[string]*tls.Certificate{
			"no certificate": nil,
			"another CA's":   other.client(c.name, c.change),
			"a server's": authority.client(c.name, func(x *x509.Certificate) {
				x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			}),
			"expired": authority.client(c.name, func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Second) }),
		} {
			if _, err := authority.dial(s.Addr, pair, nil).GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.b"}); status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TLS 1.1 is refused, and so is 1.2 where 1.3 is the least; plain text gets no answer.
func TestTLSVersions(t *testing.T) {
	authority := newCA(t)
	cert, key := authority.server()
	for least, want := range map[string]map[uint16]bool{
		"1.2": {tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true},
		"1.3": {tls.VersionTLS12: false, tls.VersionTLS13: true},
	} {
		s := runneltest.StartServer(t, server.Config{TLS: server.TLS{Cert: cert, Key: key, MinVersion: least}})
		for version, ok := range want {
			api := authority.dial(s.Addr, nil, func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version })
			if _, err := api.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b"}); (err == nil) != ok {
				t.Errorf("least %s, client %s: %v", least, tls.VersionName(version), err)
			}
		}
		if _, err := newClients(t, s.Addr).Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b"}); status.Code(err) != codes.Unavailable {
			t.Errorf("plain text: %v", err)
		}
	}
}

// A client's certificate that expires ends its stream, although the connection was made with a good one.
func TestCertificateExpiresInStream(t *testing.T) {
	t.Parallel()
	authority := newCA(t)
	cert, key := authority.server()
	s := runneltest.StartServer(t, server.Config{
		TLS:   server.TLS{Cert: cert, Key: key, ClientCA: filepath.Join(authority.dir, "ca.pem")},
		Roles: map[string]server.Role{"r": {Authenticated: true, Subscribe: []string{">"}}}, Audit: "off",
	})
	api := authority.dial(s.Addr, authority.client("dev", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second) }), nil)
	stream, err := api.Subscribe(t.Context(), &runnelv1.SubscribeRequest{Subscriptions: []*runnelv1.Subscription{{Pattern: "a.>"}}})
	for err == nil {
		_, err = stream.Recv()
	}
	if reason(err) != "TOKEN_EXPIRED" {
		t.Error(err)
	}
	if _, err := api.GetTopic(t.Context(), &runnelv1.GetTopicRequest{Topic: "a.b"}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the connection still counts: %v", err)
	}
}

// Certificates are replaced under load, also by broken ones: no stream is dropped, and new connections get the newest that is good.
// RUNNEL_ROTATIONS=100 makes it that often.
func TestRotation(t *testing.T) {
	t.Parallel()
	rotations := 3
	if n, err := strconv.Atoi(os.Getenv("RUNNEL_ROTATIONS")); err == nil {
		rotations = n
	}
	authority := newCA(t)
	cert, key := authority.server()
	s := runneltest.StartServer(t, server.Config{TLS: server.TLS{Cert: cert, Key: key}})
	roots := x509.NewCertPool()
	roots.AddCert(authority.cert)
	dial := func() *runnel.Client {
		c, err := runnel.Dial(s.Addr, runnel.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	states := make(chan runnel.State, 100)
	session, err := dial().Session(t.Context(), runnel.OnState(func(s runnel.State) { states <- s }))
	if err != nil {
		t.Fatal(err)
	}
	sub, err := session.Subscribe(t.Context(), "a.>")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	load := func() {
		t.Helper()
		for range 20 {
			n++
			if _, err := session.Publish(t.Context(), "a.b", []byte(strconv.Itoa(n))); err != nil {
				t.Fatal(err)
			}
			if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != strconv.Itoa(n) {
				t.Fatalf("event %d: %+v, %v", n, e, err)
			}
		}
	}
	for i := range rotations {
		name := fmt.Sprintf("server %d", i)
		authority.issue("server", &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // files are looked at every second
			load()
			conn, err := tls.Dial("tcp", s.Addr, &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName
			conn.Close()
			if got == name {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("rotation %d: still %s", i, got)
			}
		}
		if i%10 == 1 { // half a file changes nothing
			if err := os.WriteFile(cert, []byte("-----BEGIN CERTIFICATE-----\nMIIB"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	load()
	if len(states) != 2 || <-states != runnel.StateConnecting || <-states != runnel.StateLive {
		t.Error("the session was interrupted")
	}
	t.Logf("%d rotations, %d events", rotations, n)
}

// In a list each server shows the certificate of its own address, and one that shows another's is not spoken to.
func TestTLSList(t *testing.T) {
	t.Parallel()
	authority := newCA(t)
	cert, key := authority.server() // of 127.0.0.1
	s := runneltest.StartServer(t, server.Config{TLS: server.TLS{Cert: cert, Key: key}})
	roots := x509.NewCertPool()
	roots.AddCert(authority.cert)
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	for list, ok := range map[string]bool{s.Addr + ",127.0.0.1:1": true, "localhost:" + port + ",localhost:1": false} {
		c, err := runnel.Dial(list, runnel.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})), runnel.WithConnectTimeout(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Publish(t.Context(), "a.b", nil); (err == nil) != ok {
			t.Errorf("%s: %v", list, err)
		}
		c.Close()
	}
}
