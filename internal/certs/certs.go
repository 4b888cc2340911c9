// Package certs keeps a server's certificate, key and CA bundle up to date with their files. A file that cannot be used, half written or
// not matching the others, leaves in force what was read before.
//
// A Store is safe for concurrent use.
package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how often files are read. Their contents are compared: what a notification or a time stamp misses, as when a mount is
	// exchanged below, is seen all the same.
	lookEvery = time.Second
	maxFile   = 1 << 20
)

// Files is where things are, and what is asked of clients.
type Files struct {
	Cert, Key  string
	ClientCA   string             // verifies clients' certificates; empty: none are asked for
	ClientAuth tls.ClientAuthType // NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert
	MinVersion uint16             // tls.VersionTLS12 or tls.VersionTLS13
}

// Store holds what was last read.
type Store struct {
	files Files
	now   atomic.Pointer[loaded]
}

type loaded struct {
	raw    contents
	config *tls.Config
	leaf   *x509.Certificate
}

type contents struct{ cert, key, ca []byte }

func (c *contents) equal(o *contents) bool {
	return bytes.Equal(c.cert, o.cert) && bytes.Equal(c.key, o.key) && bytes.Equal(c.ca, o.ca)
}

// New reads the files. Errors are one line, and name the file.
func New(files Files) (*Store, error) {
	s := &Store{files: files}
	raw, err := s.read()
	if err != nil {
		return nil, err
	}
	l, err := s.load(raw)
	if err != nil {
		return nil, err
	}
	s.now.Store(l)
	return s, nil
}

// Config is for a listener: each handshake takes what was read last.
func (s *Store) Config() *tls.Config {
	return &tls.Config{
		MinVersion: s.files.MinVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.now.Load().config, nil
		},
	}
}

// Expires is when the certificate in force ends.
func (s *Store) Expires() time.Time { return s.now.Load().leaf.NotAfter }

// Run looks at the files until ctx ends. changed is called with nil when new ones are in force, and with the reason when files have
// changed and cannot be used: once for each content.
func (s *Store) Run(ctx context.Context, changed func(error)) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var refused contents
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		raw, err := s.read()
		if err != nil {
			if err.Error() != said { // until something else happens, the same is not said again
				said = err.Error()
				changed(err)
			}
			continue
		}
		said = ""
		if raw.equal(&s.now.Load().raw) || raw.equal(&refused) {
			continue
		}
		l, err := s.load(raw)
		if err != nil {
			refused = *raw
			changed(err)
			continue
		}
		s.now.Store(l)
		refused = contents{}
		changed(nil)
	}
}

func (s *Store) read() (*contents, error) {
	var c contents
	for _, f := range []struct {
		path string
		to   *[]byte
	}{{s.files.Cert, &c.cert}, {s.files.Key, &c.key}, {s.files.ClientCA, &c.ca}} {
		if f.path == "" {
			continue
		}
		b, err := readFile(f.path)
		if err != nil {
			return nil, fmt.Errorf("%s cannot be read: %w", f.path, err)
		}
		*f.to = b
	}
	return &c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return b, cause(err)
}

// cause is an error of the file system without the path, which the caller names.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (s *Store) load(raw *contents) (*loaded, error) {
	pair, err := tls.X509KeyPair(raw.cert, raw.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are not a certificate and its key: %w", s.files.Cert, s.files.Key, err)
	}
	// What is cut off in the middle of a chain would go unnoticed.
	if err := whole(raw.cert); err != nil {
		return nil, fmt.Errorf("%s: %w", s.files.Cert, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: s.files.MinVersion, ClientAuth: s.files.ClientAuth}
	if s.files.ClientCA != "" {
		if err := whole(raw.ca); err != nil {
			return nil, fmt.Errorf("%s: %w", s.files.ClientCA, err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(raw.ca) {
			return nil, fmt.Errorf("%s holds no certificate of a CA", s.files.ClientCA)
		}
	}
	return &loaded{raw: *raw, config: c, leaf: pair.Leaf}, nil
}

// whole reports whether PEM is complete: as many beginnings as blocks, each a certificate where it says so.
func whole(b []byte) error {
	begun := bytes.Count(b, []byte("-----BEGIN "))
	blocks := 0
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type == "CERTIFICATE" {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return fmt.Errorf("its certificate %d is malformed", blocks)
			}
		}
	}
	if blocks != begun {
		return errors.New("it is not complete")
	}
	return nil
}
