package fhir

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// assertionLife is how long an assertion holds; SMART allows 5 minutes, and the clock of the other side may be ahead.
const assertionLife = 4 * time.Minute

// minRSABits is what RFC 7518 asks of keys for RS384.
const minRSABits = 2048

// errAssertion is returned when an assertion cannot be signed.
var errAssertion = errors.New("the assertion could not be signed")

// Signer signs the assertions by which the sidecar says who it is (SMART Backend Services, private_key_jwt).
type Signer struct{ signer jose.Signer }

// NewSigner takes a private key as PEM: RSA signs by RS384, a key on the curve P-384 by ES384. keyID is how the key is called
// in the JWKS that the identity server knows. algorithm may be empty, else the key has to fit it.
func NewSigner(key []byte, keyID, algorithm string) (*Signer, error) {
	private, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	fits := jose.RS384
	switch private := private.(type) {
	case *rsa.PrivateKey:
		if private.N.BitLen() < minRSABits {
			return nil, fmt.Errorf("the private key has fewer than %d bits", minRSABits)
		}
	case *ecdsa.PrivateKey:
		if fits = jose.ES384; private.Curve != elliptic.P384() {
			return nil, errors.New("the private key is on another curve than P-384")
		}
	default:
		return nil, errors.New("the private key is neither RSA nor on the curve P-384")
	}
	if algorithm != "" && algorithm != string(fits) {
		return nil, fmt.Errorf("the private key is for %s, not for %s", fits, algorithm)
	}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", keyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: fits, Key: private}, options)
	if err != nil {
		return nil, errors.New("the private key cannot sign")
	}
	return &Signer{signer}, nil
}

// parseKey reads a key in one of the forms that openssl writes.
func parseKey(text []byte) (any, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("there is no private key in PEM form, or it is encrypted")
		}
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key, nil
		}
	}
}

// assertion signs one for the audience. No two are the same.
func (s *Signer) assertion(client, audience string) (string, error) {
	now := time.Now()
	signed, err := jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer: client, Subject: client, Audience: jwt.Audience{audience}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(assertionLife)),
	}).Serialize()
	if err != nil {
		return "", errAssertion
	}
	return signed, nil
}
