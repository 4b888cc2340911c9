package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
)

// strong refuses keys that can be guessed or factored.
func strong(key any) error {
	switch k := key.(type) {
	case []byte:
		if len(k) < minSecret {
			return fmt.Errorf("its secret has %d bytes; at least %d are needed", len(k), minSecret)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("its RSA key has %d bits; at least %d are needed", k.N.BitLen(), minRSA)
		}
	case *rsa.PrivateKey:
		return strong(&k.PublicKey)
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return fmt.Errorf("its curve is %s; ES256 needs P-256", k.Curve.Params().Name)
		}
	case *ecdsa.PrivateKey:
		return strong(&k.PublicKey)
	}
	return nil
}
