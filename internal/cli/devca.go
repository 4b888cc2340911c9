package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// devFiles are a development CA, what it has signed, and a secret for tokens.
const (
	devDir    = "runnel-dev"
	devSecret = "token-secret"
	devLife   = 365 * 24 * time.Hour
)

// devSections are what config init --tls adds to the configuration.
const devSections = `
# Written by "runnel config init --tls": for development. Keys and the secret in runnel-dev/ are as good as passwords.
tls:
  cert: runnel-dev/server.pem
  key: runnel-dev/server-key.pem
  client_ca: runnel-dev/ca.pem
  client_auth: optional

issuers:
  dev:
    issuer: runnel-dev
    audience: [runnel]
    algorithms: [HS256]
    keys: [runnel-dev/token-secret]

roles:
  # Whoever has a token from "runnel token", or runnel-dev/client.pem.
  developer:
    authenticated: true
    publish: [">"]
    subscribe: [">"]
    history: [">"]
  admin:
    claims: [role=admin]
    admin: [">"]
`

// writeDevFiles makes a CA that lives a year, certificates for a server and a client, and a secret, in devDir. The CA's key is thrown
// away: it can sign nothing else.
func writeDevFiles(hosts []string) error {
	if err := os.Mkdir(devDir, 0o700); err != nil {
		return fmt.Errorf("%w; remove it to have new certificates made", err)
	}
	ca, caKey, err := sign("runnel development CA", nil, nil, nil, 0)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err == nil && host != "" {
		hosts = append(hosts, host)
	}
	server, serverKey, err := sign("runnel server", append([]string{"localhost", "127.0.0.1", "::1"}, hosts...), ca, caKey, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	client, clientKey, err := sign("developer", nil, ca, caKey, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	for name, write := range map[string]func() ([]byte, error){
		"ca.pem":         func() ([]byte, error) { return certPEM(ca), nil },
		"server.pem":     func() ([]byte, error) { return certPEM(server), nil },
		"server-key.pem": func() ([]byte, error) { return keyPEM(serverKey) },
		"client.pem":     func() ([]byte, error) { return certPEM(client), nil },
		"client-key.pem": func() ([]byte, error) { return keyPEM(clientKey) },
		devSecret:        func() ([]byte, error) { return []byte(rand.Text() + rand.Text() + "\n"), nil },
	} {
		b, err := write()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(devDir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sign makes a key and a certificate: signed by ca, or a CA itself if that is nil.
func sign(name string, hosts []string, ca *x509.Certificate, caKey *ecdsa.PrivateKey, usage x509.ExtKeyUsage) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(devLife),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	parent, signer := ca, caKey
	if ca == nil {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = t, key
	} else {
		t.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, key, err
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}
