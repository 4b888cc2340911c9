package natsengine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

func TestToken(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1, func(o *server.Options) { o.Authorization = "token" })
	logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1, Credentials: Credentials{Token: "token"}}), "n")
}

func TestNKey(t *testing.T) {
	t.Parallel()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	c := natstest.New(t, 1, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })
	file := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1, Credentials: Credentials{NKeySeed: file}}), "n")
}

// A credentials file, as an operator's servers ask for it; and one of a user that was made by somebody else.
func TestCredsFile(t *testing.T) {
	t.Parallel()
	operator, accountKey, system := pair(t, nkeys.CreateOperator), pair(t, nkeys.CreateAccount), pair(t, nkeys.CreateAccount)
	account := jwt.NewAccountClaims(public(t, accountKey))
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: 1 << 30, MemoryStorage: 1 << 30, Streams: -1, Consumer: -1}
	resolver := &server.MemAccResolver{}
	for _, claims := range []*jwt.AccountClaims{account, jwt.NewAccountClaims(public(t, system))} {
		token, err := claims.Encode(operator)
		if err != nil {
			t.Fatal(err)
		}
		if err := resolver.Store(claims.Subject, token); err != nil {
			t.Fatal(err)
		}
	}
	c := natstest.New(t, 1, func(o *server.Options) {
		o.TrustedKeys, o.AccountResolver, o.SystemAccount = []string{public(t, operator)}, resolver, public(t, system)
	})
	creds := func(issuer nkeys.KeyPair) string {
		user := pair(t, nkeys.CreateUser)
		claims := jwt.NewUserClaims(public(t, user))
		claims.IssuerAccount = public(t, accountKey)
		if issuer == accountKey {
			claims.IssuerAccount = ""
		}
		token, err := claims.Encode(issuer)
		if err != nil {
			t.Fatal(err)
		}
		seed, err := user.Seed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "user.creds")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	put(t, logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1, Credentials: Credentials{CredsFile: creds(accountKey)}}), "n"), entry("n.a", "1"))
	for file, want := range map[string]string{creds(pair(t, nkeys.CreateAccount)): "NATS refuses this node's credentials", "/none": "cannot use the credentials"} {
		_, err := Open(Options{URLs: c.URLs(), Credentials: Credentials{CredsFile: file}, Logger: discard})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func pair(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	k, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	s, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Servers and nodes show certificates to each other.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certificate, cert, key := selfSigned(t, dir)
	pool := x509.NewCertPool()
	pool.AddCert(certificate.Leaf)
	c := natstest.New(t, 1, func(o *server.Options) {
		o.TLS, o.TLSTimeout = true, 5
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	})
	logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1, Credentials: Credentials{CA: cert, Cert: cert, Key: key}}), "n")
	for _, creds := range []Credentials{{}, {CA: cert}} {
		if _, err := Open(Options{URLs: c.URLs(), Credentials: creds, Logger: discard}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", creds, err)
		}
	}
}

func selfSigned(t *testing.T, dir string) (c tls.Certificate, cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, data := range map[string][]byte{cert: certPEM, key: keyPEM} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return c, cert, key
}
