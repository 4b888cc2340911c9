package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"

	"github.com/runnelhq/runnel"
)

// clientTLS is how the commands reach a server over TLS.
type clientTLS struct {
	on                    bool
	ca, cert, key, server string
}

func (t *clientTLS) flags(f *pflag.FlagSet) {
	f.BoolVar(&t.on, "tls", false, "connect over TLS; the other --tls flags imply it")
	f.StringVar(&t.ca, "tls-ca", "", "file with the CAs to trust (default the system's)")
	f.StringVar(&t.cert, "tls-cert", "", "file with this client's certificate")
	f.StringVar(&t.key, "tls-key", "", "file with its key")
	f.StringVar(&t.server, "tls-server-name", "", "name in the server's certificate, if it is not that of --server")
}

func (t *clientTLS) used() bool {
	return t.on || t.ca != "" || t.cert != "" || t.key != "" || t.server != ""
}

// option is how to dial; nil without TLS.
func (t *clientTLS) option() (runnel.Option, error) {
	if !t.used() {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.server}
	if t.ca != "" {
		b, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, usagef("--tls-ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, usagef("--tls-ca: %s holds no certificate", t.ca)
		}
	}
	if (t.cert == "") != (t.key == "") {
		return nil, usagef("--tls-cert and --tls-key go together")
	}
	if t.cert != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, usageError{fmt.Errorf("--tls-cert, --tls-key: %w", err)}
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return runnel.WithTransportCredentials(credentials.NewTLS(c)), nil
}
