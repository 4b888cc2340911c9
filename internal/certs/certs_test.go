package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pair makes a certificate with its key.
func pair(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(4e9, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *Store) name() string { return s.now.Load().leaf.Subject.CommonName }

// Every way in which files may change, seen through a clock of its own.
func TestFilesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f := Files{
			Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem"), ClientCA: filepath.Join(dir, "ca.pem"),
			ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		}
		c1, k1 := pair(t, "one")
		c2, k2 := pair(t, "two")
		write(t, f.Cert, c1)
		write(t, f.Key, k1)
		write(t, f.ClientCA, c1)
		s, err := New(f)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var said []string
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			s.Run(ctx, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					said = append(said, "renewed")
					return
				}
				said = append(said, err.Error())
			})
		})
		step := func(what, name string, want ...string) {
			t.Helper()
			time.Sleep(3 * lookEvery)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if s.name() != name || len(said) != len(want) {
				t.Errorf("%s: %s in force, said %q", what, s.name(), said)
			} else {
				for i := range want {
					if !strings.Contains(said[i], want[i]) {
						t.Errorf("%s: said %q, want %q", what, said, want)
					}
				}
			}
			said = nil
		}
		step("nothing changes", "one")
		write(t, f.Cert, c2)
		step("the certificate comes before its key", "one", "are not a certificate and its key")
		write(t, f.Key, k2)
		step("its key comes", "two", "renewed")
		write(t, f.Cert, c1[:len(c1)/2])
		step("half of a file", "two", "are not a certificate and its key")
		write(t, f.Cert, append(append([]byte{}, c2...), c1[:len(c1)/2]...))
		step("half of a chain", "two", "it is not complete")
		write(t, f.Cert, c2)
		step("as it was", "two")
		write(t, f.ClientCA, []byte("nothing"))
		step("a CA bundle without a CA", "two", "holds no certificate of a CA")
		write(t, f.ClientCA, append(append([]byte{}, c1...), c2...))
		step("a larger CA bundle", "two", "renewed")
		if err := os.Remove(f.Key); err != nil {
			t.Fatal(err)
		}
		step("a file is gone", "two", "k.pem cannot be read: no such file or directory")
		write(t, f.Key, k1)
		write(t, f.Cert, c1)
		step("both come", "one", "renewed")
		cancel()
		running.Wait()
		if got, err := s.Config().GetConfigForClient(nil); err != nil || got.ClientAuth != f.ClientAuth || got.MinVersion != f.MinVersion || got.ClientCAs == nil {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestFilesThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		write(t, p, b)
		return p
	}
	c1, k1 := pair(t, "one")
	_, k2 := pair(t, "two")
	good := Files{Cert: path("c", c1), Key: path("k", k1)}
	for _, c := range []struct {
		files Files
		want  string
	}{
		{Files{Cert: "nowhere", Key: good.Key}, "nowhere cannot be read: no such file"},
		{Files{Cert: good.Cert, Key: path("k2", k2)}, "private key does not match"},
		{Files{Cert: good.Cert, Key: good.Cert}, "are not a certificate and its key"},
		{Files{Cert: good.Cert, Key: good.Key, ClientCA: path("empty", nil)}, "holds no certificate of a CA"},
		{Files{Cert: dir, Key: good.Key}, "cannot be read: is a directory"},
		{Files{Cert: path("large", make([]byte, maxFile+1)), Key: good.Key}, "it has more than"},
	} {
		if _, err := New(c.files); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
